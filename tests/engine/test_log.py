import io
import json
import os
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from limbeck.engine.checkpoint import open_run
from limbeck.engine.distributed import Ranks
from limbeck.engine.log import Log, cut_metrics, read_metrics
from limbeck.engine.options import TrainOptions
from limbeck.errors import RunError, UserError

STEP = {
    "epoch": 0.5,
    "lr": 0.01,
    "losses": {"total": 1.5, "qk": 1.0, "vv": 0.5},
    "grad_norm": 2.0,
    "num_images": 64,
    "seconds": 0.5,
    "wait_seconds": 0.125,
}


def open_log(tmp_path, ranks=Ranks(), is_terminal=False, **options):  # noqa: B008
    run = open_run(tmp_path / "run", {}, {})
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=200)
    train_options = TrainOptions(log_every=1, **options)
    return Log(run, train_options, ranks, stage="distill", total_steps=10, console=console)


def read_lines(tmp_path):
    return (tmp_path / "run/metrics.jsonl").read_text().splitlines()


def shown(log):
    return log.console.file.getvalue()


def test_plain_lines_say_everything(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.engine.log.SECONDS_BETWEEN_LINES", -1.0)
    with open_log(tmp_path) as log:
        log.start(0)
        log.add_step(1, **STEP)
        log.add_probe(1, epoch=0.5, scores={"knn": 0.25})
        lines = shown(log).splitlines()
    assert lines[0] == (
        "distill  step 1/10 (10 %)  ETA 0:00:00  128 images/s  data wait 25 %  "
        "loss 1.5 (qk 1, vv 0.5)  lr 0.01"
    )
    assert lines[1].endswith("probe knn 0.25")


def test_plain_lines_come_every_few_seconds_only(tmp_path):
    with open_log(tmp_path) as log:
        log.start(0)
        for step in range(1, 6):
            log.add_step(step, **STEP)
        assert shown(log) == ""


def test_a_terminal_gets_a_live_view(tmp_path):
    with open_log(tmp_path, is_terminal=True) as log:
        log.start(0)
        log.add_step(5, **STEP)
        log.note("said in between")
    text = shown(log)
    assert "step 5/10 (50 %)" in text
    assert "loss 1.5 (qk 1, vv 0.5)" in text
    assert "said in between" in text


def test_records_in_metrics_and_tensorboard(tmp_path):
    with open_log(tmp_path) as log:
        log.start(0)
        log.add_step(1, **STEP)
        log.add_step(2, **{**STEP, "grad_norm": float("inf")})
        log.add_probe(2, epoch=1.0, scores={"knn": 0.25})
    records = [json.loads(line) for line in read_lines(tmp_path)]
    assert records[0] == {
        "step": 1,
        "epoch": 0.5,
        "lr": 0.01,
        "losses": STEP["losses"],
        "grad_norm": 2.0,
        "images_per_second": 128.0,
        "data_wait_share": 0.25,
    }
    assert records[1]["grad_norm"] is None
    assert records[2] == {"step": 2, "epoch": 1.0, "probe": {"knn": 0.25}}
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/qk")] == [(1, 1), (2, 1)]
    assert [event.value for event in events.Scalars("probe/knn")] == [0.25]


def test_tensorboard_hides_what_was_beyond_the_checkpoint(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        with open_log(tmp_path) as log:
            log.start(start)
            for step in steps:
                log.add_step(step, **STEP)
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3, 4, 5]


def test_wandb_missing_is_an_error_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'limbeck\[wandb\]'"):
        open_log(tmp_path, wandb_project="mine")


def test_wandb_gets_the_records_under_one_id(tmp_path, monkeypatch):
    calls = []
    fake = SimpleNamespace(
        run=object(),
        init=lambda **options: calls.append(("init", options["project"], options["id"])),
        log=lambda scalars, step: calls.append((step, scalars)),
        finish=lambda: calls.append("finish"),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for start in (0, 1):
        with open_log(tmp_path, wandb_project="mine") as log:
            log.start(start)
            log.add_step(start + 1, **STEP)
    assert calls[0][:2] == ("init", "mine")
    assert calls[0] == calls[3]
    assert calls[1][0] == 1
    assert calls[1][1]["loss/qk"] == 1.0
    assert calls[2] == calls[5] == "finish"


def test_other_ranks_are_silent(tmp_path):
    with open_log(tmp_path, ranks=Ranks(rank=1, world_size=2), wandb_project="mine") as log:
        log.start(0)
        log.add_step(1, **STEP)
        log.add_probe(1, epoch=0.5, scores={})
        log.note("nothing")
        log.flush()
    assert shown(log) == ""
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_cut_metrics_drops_later_and_torn_lines(tmp_path):
    file = tmp_path / "metrics.jsonl"
    cut_metrics(file, 3)
    file.write_text('{"step": 2}\n{"step": 3}\n{"step": 3, "probe": {}}\n{"step": 4}\n{"st')
    cut_metrics(file, 3)
    assert file.read_text() == '{"step": 2}\n{"step": 3}\n{"step": 3, "probe": {}}\n'
    cut_metrics(file, 0)
    assert file.read_text() == ""


def test_damaged_records_are_dropped_and_told(tmp_path, caplog):
    file = tmp_path / "metrics.jsonl"
    bad = [b"{", b"[]", b'{"step": "two"}', b'{"stap": 2}', b"\xff\xfe", b'"step"', b"1"]
    good = '{"step": 2, "finding": "a\u2028b"}'.encode()
    file.write_bytes(b"\n".join([*bad, good, b""]))
    assert [record.get("finding") for record in read_metrics(file, dict)][-1] == "a\u2028b"
    cut_metrics(file, 3)
    assert file.read_bytes() == good + b"\n"
    assert "7 damaged lines are dropped" in caplog.text


def test_a_pipe_in_place_of_the_records_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert read_metrics(tmp_path / "metrics.jsonl", dict) == []
    with pytest.raises(RunError, match="a named pipe"):
        cut_metrics(tmp_path / "metrics.jsonl", 3)


def test_what_json_does_not_have_is_written_as_none(tmp_path):
    with open_log(tmp_path) as log:
        log.start(0)
        log.add_probe(1, epoch=0.5, scores={"knn": float("nan"), "top1": float("inf")})
    assert json.loads(read_lines(tmp_path)[0])["probe"] == {"knn": None, "top1": None}


def test_a_full_disk_is_said(tmp_path):
    with open_log(tmp_path) as log:
        log.start(0)
        log._metrics.close()
        log._metrics = open("/dev/full", "w")  # noqa: SIM115
        with pytest.raises(RunError, match="metrics.jsonl: the disk is full"):
            log.add_step(1, **STEP)


def test_a_continued_run_says_so_and_shows_the_last_probe(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.engine.log.SECONDS_BETWEEN_LINES", -1.0)
    with open_log(tmp_path) as log:
        log.start(4, {"knn": 0.5})
        log.add_step(5, **STEP)
    lines = shown(log).splitlines()
    assert lines[0] == "distill: continues at step 4 of 10"
    assert lines[1].endswith("probe knn 0.5")
