"""What a run costs, added up over its attempts."""

import json

import pytest
import torch

from limbeck.recipes.costs import COST_FILE, images_per_second, measured

CPU = torch.device("cpu")


def test_speed_is_that_of_all_steps(tmp_path):
    lines = [{"images_per_second": 10.0}, {"probe": {}}, {"images_per_second": 40.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert images_per_second(tmp_path) == {"images_per_second": 16.0}
    assert images_per_second(tmp_path / "none") == {}


def test_attempts_add_up_and_a_finished_run_costs_nothing_more(tmp_path, monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0])
    monkeypatch.setattr("limbeck.recipes.costs.time.monotonic", lambda: next(clock))

    def breaks():
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError):
        measured(tmp_path, CPU, breaks)
    assert json.loads((tmp_path / COST_FILE).read_text())["seconds"] == 5.0
    cost = measured(tmp_path, CPU, lambda: (tmp_path / "finished.json").write_text("{}"))
    assert cost["seconds"] == 7.0
    assert measured(tmp_path, CPU, lambda: None)["seconds"] == 7.0


def test_a_run_that_was_replaced_starts_at_nought(tmp_path, monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0])
    monkeypatch.setattr("limbeck.recipes.costs.time.monotonic", lambda: next(clock))
    measured(tmp_path, CPU, lambda: (tmp_path / "finished.json").write_text("{}"))
    cost = measured(tmp_path, CPU, (tmp_path / COST_FILE).unlink)
    assert cost["seconds"] == 2.0
