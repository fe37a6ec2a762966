import itertools
import json
import logging
import os
import signal
import threading

import pytest
import torch

from limbeck.engine.loop import Interrupted
from limbeck.errors import NotFiniteError, RunError
from tests.engine.fakes import (
    TinyModule,
    assert_same_weights,
    fake_batches,
    fake_probe,
    read_metrics,
    train,
)

EVERYTHING = {
    "drop_path": 0.5,
    "optim": {"clip_grad": 0.3},
    "options": {"ema_decay": 0.9, "accumulate_steps": 2},
}


class Killed(Exception):
    pass


def killed_at(step, size=8, accumulate=2):
    """Batches that end in an exception when those of ``step`` are asked for."""

    def batches(start):
        stream = fake_batches(size, accumulate)(start)
        for _ in range((step - start) * accumulate):
            yield next(stream)
        raise Killed

    return batches


def signalled_at(step, number, times=1):
    def batches(start):
        for index, batch in enumerate(fake_batches(8)(start)):
            if start + index == step:
                for _ in range(times):
                    os.kill(os.getpid(), number)
            yield batch

    return batches


def test_loss_falls_and_the_record_is_complete(tmp_path):
    module, result = train(tmp_path, total_steps=40)
    records = read_metrics(tmp_path)
    steps = [record for record in records if "losses" in record]
    assert steps[-1]["losses"]["total"] < 0.5 * steps[0]["losses"]["total"]
    assert [record["step"] for record in steps] == list(range(2, 41, 2))
    assert set(steps[0]) == {"step", "epoch", "lr", "losses", "grad_norm"}
    assert set(steps[0]["losses"]) == {"total", "near", "small"}
    assert result.losses == steps[-1]["losses"]
    probes = [record for record in records if "probe" in record]
    assert [record["step"] for record in probes] == [*range(3, 40, 3), 40]
    assert result.probes == probes[-1]["probe"]
    assert int(module.num_forwards) == 40
    # Warm-up over one epoch of four steps: the first step has lr 0, the second record peak / 4 * 3.
    assert [round(record["lr"] / (0.3 * 8 / 256), 6) for record in steps[:2]] == [0.25, 0.75]


def test_the_poly_schedule_ends_in_a_line(tmp_path):
    train(tmp_path, total_steps=40, optim={"schedule": "poly", "warmup_epochs": 0.0})
    rates = [record["lr"] for record in read_metrics(tmp_path) if "losses" in record]
    assert [round(rate / rates[0], 3) for rate in rates[1:]] == [
        round((39 - step) / 38, 3) for step in range(3, 41, 2)
    ]
    assert rates[-1] == 0


def test_the_schedule_of_steps_falls_to_tenths(tmp_path):
    optim = {"schedule": "steps", "drop_at": (0.5, 0.75), "warmup_epochs": 0.0}
    train(tmp_path, total_steps=40, optim=optim)
    rates = [record["lr"] for record in read_metrics(tmp_path) if "losses" in record]
    falls = [1.0] * 10 + [0.1] * 5 + [0.01] * 5  # of steps 1, 3 and so on
    assert [rate / rates[0] for rate in rates] == pytest.approx(falls)


def test_probes_run_ten_times_unless_told(tmp_path):
    train(tmp_path, total_steps=40, options={"probe_every": 0})
    steps = [record["step"] for record in read_metrics(tmp_path) if "probe" in record]
    assert steps == list(range(4, 41, 4))


def test_accumulation_equals_a_big_batch(tmp_path):
    whole, _ = train(tmp_path / "1")
    parts, _ = train(tmp_path / "4", options={"accumulate_steps": 4})
    whole.num_forwards.fill_(0)
    parts.num_forwards.fill_(0)
    assert_same_weights(whole, parts, rtol=1e-4, atol=1e-5)  # float32 sums in another order
    one, four = read_metrics(tmp_path / "1"), read_metrics(tmp_path / "4")
    for record, other in zip(one, four, strict=True):
        if "losses" in record:
            assert record["losses"] == pytest.approx(other["losses"], rel=1e-4)
            assert record["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resume_is_bit_identical(tmp_path, precision):
    settings = {**EVERYTHING, "options": {**EVERYTHING["options"], "precision": precision}}
    whole, result = train(tmp_path / "whole", **settings)
    for step in (0, 2, 8, 11):  # before any checkpoint, off and on its steps
        with pytest.raises(Killed):
            train(tmp_path / "parts", batches=killed_at(step), **settings)
    parts, resumed = train(tmp_path / "parts", **settings)
    assert_same_weights(whole, parts, rtol=0, atol=0)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")
    assert result == resumed


def test_resume_with_sgd_is_bit_identical(tmp_path):
    optim = {**EVERYTHING["optim"], "optimizer": "sgd", "base_lr": 0.05, "clip_grad": 1.0}
    settings = {**EVERYTHING, "optim": optim}
    whole, _ = train(tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        train(tmp_path / "parts", batches=killed_at(8), **settings)
    parts, _ = train(tmp_path / "parts", **settings)
    assert_same_weights(whole, parts, rtol=0, atol=0)
    adam, _ = train(tmp_path / "adam", **EVERYTHING)
    assert not torch.equal(adam.head.weight, parts.head.weight)


def test_another_seed_of_randomness_would_show(tmp_path):
    """Drop path is really on in the resume tests: without it the weights differ."""
    one, _ = train(tmp_path / "1", drop_path=0.5)
    two, _ = train(tmp_path / "2")
    assert not torch.equal(one.head.weight, two.head.weight)


def test_a_finished_run_returns_at_once_with_the_average(tmp_path, caplog):
    caplog.set_level(logging.INFO, "limbeck")
    whole, result = train(tmp_path, **EVERYTHING)

    def no_batches(step):
        raise AssertionError("a finished run needs no data")

    again, same = train(tmp_path, batches=no_batches, **EVERYTHING)
    assert_same_weights(whole, again, rtol=0, atol=0)
    assert same == result
    assert "done already" in caplog.text


def test_average_is_what_is_probed_and_left(tmp_path):
    seen = []

    def probe(module, step):
        seen.append(module.head.weight.detach().clone())
        return {"score": 0.0}

    module, _ = train(tmp_path, probes=probe, options={"ema_decay": 0.5})
    raw, _ = train(tmp_path / "raw")
    assert torch.equal(seen[-1], module.head.weight)
    # decay is min(0.5, (1 + n) / (10 + n)): slow steps that follow the raw weights closely
    assert not torch.equal(module.head.weight, raw.head.weight)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert torch.equal(saved["module"]["head.weight"], raw.head.weight)
    assert torch.equal(saved["average"]["head.weight"], module.head.weight)


def test_checkpoint_holds_what_is_said(tmp_path):
    train(tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["limbeck_checkpoint"] == 1
    assert set(state["module"]) == set(TinyModule().state_dict())
    assert state["step"] == 12
    assert state["config"]["train"]["global_batch_size"] == 8
    assert state["versions"]["torch"] == torch.__version__


def change_checkpoint(folder, change):
    file = folder / "checkpoint.pt"
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)


@pytest.mark.parametrize("where", ["module", "average", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_that_is_not_finite_is_not_taken(tmp_path, where, value):
    options = {"ema_decay": 0.9}
    train(tmp_path, options=options)

    def spoil(state):
        tensors = state[where]
        if where == "optimizer":
            tensors["state"][0]["exp_avg"][0] = value
        else:
            tensors["stem.weight"][0] = value

    change_checkpoint(tmp_path, spoil)
    with pytest.raises(RunError, match=r"holds NaN or infinity \(stem.*from a copy"):
        train(tmp_path, options=options)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("module"),
        lambda state: state["module"].pop("stem.weight"),
        lambda state: state["module"].update({"stem.weight": torch.zeros(1)}),
        lambda state: state["module"].update({"stem.weight": "weights"}),
        lambda state: state["optimizer"].update({"param_groups": []}),
        lambda state: state.update({"step": "three"}),
        lambda state: state.update({"step": -1}),
        lambda state: state.update({"losses": [1.0]}),
        lambda state: state.update({"watch": {"sums": 3}}),
        lambda state: state.update({"scaler": None}),
    ],
)
def test_a_checkpoint_of_something_else_is_not_taken(tmp_path, change):
    train(tmp_path)
    change_checkpoint(tmp_path, change)
    with pytest.raises(RunError, match="checkpoint.pt is not of this run .*from a copy"):
        train(tmp_path)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")],
)
def test_a_signal_saves_and_the_run_continues(tmp_path, number, code, word):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"{word} after step 7.*same command again") as stopped:
        train(tmp_path / "parts", batches=signalled_at(6, number))
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is before
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"] == 7
    parts, _ = train(tmp_path / "parts")
    whole, _ = train(tmp_path / "whole")
    assert_same_weights(whole, parts, rtol=0, atol=0)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    moments = iter(range(0, 1000, 2))
    monkeypatch.setattr("limbeck.engine.loop.time.monotonic", lambda: next(moments))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, batches=signalled_at(6, signal.SIGINT, times=2))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5


def test_torchruns_echo_of_ctrl_c_is_not_a_second_one(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, batches=signalled_at(6, signal.SIGINT, times=2))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 7


def test_runs_outside_the_main_thread(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(train(tmp_path)))
    thread.start()
    thread.join()
    assert done[0][1].step == 12


def test_nan_stops_with_step_parts_and_keys(tmp_path):
    with pytest.raises(RunError, match=r"Step 8 is not finite: losses total nan, near nan") as stop:
        train(tmp_path, bad_step=7, options={"accumulate_steps": 4})
    assert "samples 7/0, 7/1 (all in" in str(stop.value)
    record = json.loads((tmp_path / "nonfinite.json").read_text())
    assert record["step"] == 8
    assert [entry["is_finite"] for entry in record["micro_batches"]] == [False, True, True, True]
    assert record["micro_batches"][0]["losses"]["near"] == "nan"
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 5
    assert all(tensor.isfinite().all() for tensor in state["module"].values())


def test_a_probe_that_meets_blown_up_weights_names_the_step(tmp_path):
    def probe(module, step):
        raise NotFiniteError("features are not finite")

    with pytest.raises(RunError, match=r"Step 5 is not finite: losses total .* samples 4/0"):
        train(tmp_path, probes=probe, options={"probe_every": 5})
    assert json.loads((tmp_path / "nonfinite.json").read_text())["step"] == 5


def test_a_finite_loss_with_an_infinite_gradient_stops_too(tmp_path):
    def batches(step):
        """Images whose loss still fits float32 and whose gradient does not."""
        for batch in fake_batches(8)(step):
            batch.images.mul_(1e18)
            yield batch

    with pytest.raises(RunError, match=r"losses total \d.*e\+3\d, .* gradient norm inf"):
        train(tmp_path, batches=batches)


def test_fp16_skips_overflows_and_finds_its_scale(tmp_path):
    def batches(step):
        for batch in fake_batches(8)(step):
            batch.images.mul_(100)
            yield batch

    module, _ = train(
        tmp_path, total_steps=20, batches=batches, options={"precision": "fp16", "log_every": 1}
    )
    records = [record for record in read_metrics(tmp_path) if "losses" in record]
    assert None in [record["grad_norm"] for record in records]
    assert records[-1]["grad_norm"] is not None
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["scaler"]["scale"] < 65536
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_clipping_bounds_the_step(tmp_path):
    """Far below AdamW's eps; without clipping its steps would not depend on the gradient's size."""
    optim = {"weight_decay": 0.0}
    free, _ = train(tmp_path / "free", total_steps=8, optim=optim)
    tight, _ = train(tmp_path / "tight", total_steps=8, optim={**optim, "clip_grad": 1e-12})
    start = TinyModule()
    moved = [(model.head.weight - start.head.weight).abs().max() for model in (free, tight)]
    assert moved[1] < 0.01 * moved[0]


def test_data_that_ends_early_is_said(tmp_path):
    def batches(step):
        yield next(fake_batches(8)(step))

    with pytest.raises(RunError, match="The data ended at step 2"):
        train(tmp_path, batches=batches)


def test_compile_keeps_the_names(tmp_path, monkeypatch):
    monkeypatch.setattr(
        TinyModule, "compile", lambda self: torch.nn.Module.compile(self, backend="eager")
    )
    compiled, _ = train(tmp_path / "compiled", options={"compile": True})
    plain, _ = train(tmp_path / "plain")
    assert_same_weights(plain, compiled, rtol=0, atol=0)
    state = torch.load(tmp_path / "compiled" / "checkpoint.pt", weights_only=True)
    assert "head.weight" in state["module"]


def test_a_probe_leaves_training_as_it_was(tmp_path):
    """``fake_probe`` draws random numbers and leaves evaluation mode on."""
    with_probe, _ = train(tmp_path / "with", drop_path=0.5, probes=fake_probe)
    without, _ = train(tmp_path / "without", drop_path=0.5, probes=None)
    assert_same_weights(with_probe, without, rtol=0, atol=0)


def test_after_each_step_the_module_is_told_also_when_continued(tmp_path):
    told = []
    batches = fake_batches(8)

    def short(step):
        return itertools.islice(batches(step), 7 - step)

    with pytest.raises(RunError, match="data ended"):
        train(tmp_path, batches=short, after_step=lambda *args: told.append(args))
    assert told == [(step, 12) for step in range(1, 8)]
    told.clear()
    train(tmp_path, after_step=lambda *args: told.append(args))
    assert told == [(step, 12) for step in range(6, 13)]  # from the checkpoint of step 5
