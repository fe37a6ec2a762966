"""What a run costs, added up over its attempts."""

import json
import threading
from contextlib import contextmanager, nullcontext

import pytest
import torch

from limbeck.errors import RunError, UserError
from limbeck.recipes.run.costs import COST_FILE, images_per_second, measured, repeated

CPU = torch.device("cpu")


def test_speed_is_that_of_all_steps(tmp_path):
    lines = [{"images_per_second": 10.0}, {"probe": {}}, {"images_per_second": 40.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert images_per_second(tmp_path) == {"images_per_second": 16.0}
    assert images_per_second(tmp_path / "none") == {}


def test_attempts_add_up_and_a_finished_run_costs_nothing_more(tmp_path, monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0])
    monkeypatch.setattr("limbeck.recipes.run.costs.time.monotonic", lambda: next(clock))

    def breaks():
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError):
        measured(tmp_path, CPU, breaks)
    assert json.loads((tmp_path / COST_FILE).read_text())["seconds"] == 5.0
    cost = measured(tmp_path, CPU, lambda: (tmp_path / "finished.json").write_text("{}"))
    assert cost["seconds"] == 7.0
    assert measured(tmp_path, CPU, lambda: None)["seconds"] == 7.0


def test_seconds_before_a_kill_count(tmp_path, monkeypatch):
    """What is kept on the way is what a process that is killed leaves behind."""
    clock = iter([0.0, 4.0, 9.0, 10.0, 12.0])
    monkeypatch.setattr("limbeck.recipes.run.costs.time.monotonic", lambda: next(clock))
    kept = []

    @contextmanager
    def twice(keep, seconds):
        keep()  # before the run has its folder: nothing is kept of it
        (tmp_path / "config.json").write_text("{}")
        for _ in range(2):
            keep()
            kept.append((tmp_path / COST_FILE).read_bytes())
        yield

    monkeypatch.setattr("limbeck.recipes.run.costs.repeated", twice)
    measured(tmp_path, None, lambda: None)
    assert [json.loads(each)["seconds"] for each in kept] == [4.0, 9.0]
    (tmp_path / COST_FILE).write_bytes(kept[-1])
    monkeypatch.setattr("limbeck.recipes.run.costs.repeated", lambda keep, seconds: nullcontext())
    clock = iter([0.0, 2.0])
    assert measured(tmp_path, None, lambda: None)["seconds"] == 11.0


def test_repeated_work_ends_with_the_block(tmp_path):
    calls, is_done = [], threading.Event()

    def work():
        calls.append(0)
        is_done.set()
        raise RunError("a full disk is the run's to tell")

    with repeated(work, 1e-3):
        assert is_done.wait(30)
    count = len(calls)
    assert count and not any(each.name == "repeat" for each in threading.enumerate())
    assert len(calls) == count


@pytest.mark.parametrize("text", ["{", "[]", '{"seconds": "a"}', '{"seconds": -1}', '"x"'])
def test_a_damaged_cost_is_said_with_the_way_on(tmp_path, text):
    (tmp_path / COST_FILE).write_text(text)
    with pytest.raises(UserError, match=r"cost.json.*delete it: what is in it is then measured"):
        measured(tmp_path, None, lambda: None)


def test_damaged_records_do_not_count_for_the_speed(tmp_path):
    lines = ['{"images_per_second": 10.0}', "{", '{"images_per_second": "fast"}', "[1]", '"']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert images_per_second(tmp_path) == {"images_per_second": 10.0}


def test_a_run_that_was_replaced_starts_at_nought(tmp_path, monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0])
    monkeypatch.setattr("limbeck.recipes.run.costs.time.monotonic", lambda: next(clock))
    measured(tmp_path, CPU, lambda: (tmp_path / "finished.json").write_text("{}"))
    cost = measured(tmp_path, CPU, (tmp_path / COST_FILE).unlink)
    assert cost["seconds"] == 2.0
