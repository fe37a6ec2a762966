"""What a run costs, added up over its attempts."""

import json

import pytest
import torch

from limbeck.recipes.trials import COST_FILE, Trials, images_per_second


@pytest.fixture
def trials():
    bare = Trials.__new__(Trials)
    bare.device = torch.device("cpu")
    return bare


def test_speed_is_that_of_all_steps(tmp_path):
    lines = [{"images_per_second": 10.0}, {"probe": {}}, {"images_per_second": 40.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert images_per_second(tmp_path) == {"images_per_second": 16.0}
    assert images_per_second(tmp_path / "none") == {}


def test_attempts_add_up_and_a_finished_run_costs_nothing_more(trials, tmp_path, monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0])
    monkeypatch.setattr("limbeck.recipes.trials.time.monotonic", lambda: next(clock))

    def breaks():
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError):
        trials._measured(tmp_path, breaks)
    assert json.loads((tmp_path / COST_FILE).read_text())["seconds"] == 5.0
    cost = trials._measured(tmp_path, lambda: (tmp_path / "finished.json").write_text("{}"))
    assert cost["seconds"] == 7.0
    assert trials._measured(tmp_path, lambda: None)["seconds"] == 7.0


def test_a_run_that_was_replaced_starts_at_nought(trials, tmp_path, monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0])
    monkeypatch.setattr("limbeck.recipes.trials.time.monotonic", lambda: next(clock))
    trials._measured(tmp_path, lambda: (tmp_path / "finished.json").write_text("{}"))
    cost = trials._measured(tmp_path, (tmp_path / COST_FILE).unlink)
    assert cost["seconds"] == 2.0
