"""Passes are counted, not timed by a test; the process of its own answers, or its end is told."""

import pytest

from limbeck.errors import RunError
from limbeck.exports import measure as module
from limbeck.exports import torch as to_torch
from limbeck.exports.measure import measure, passes
from limbeck.limits import num_cores
from tests.exports.kinds import compared
from tests.models.families import small_encoder

RECORD = {"input": {"kind": "normalised", "size": [32, 32]}}


def test_passes_end_with_their_number_or_their_budget():
    calls, now = [], iter(range(1000))
    assert len(passes(lambda: calls.append(1), 5, clock=lambda: 0.0)) == 5
    assert len(calls) == 6  # one is not counted
    taken = passes(lambda: None, 1000, clock=lambda: next(now))
    assert 3 <= len(taken) < 10 and set(taken) == {1}


def test_one_and_all_threads_of_each_batch(tmp_path, monkeypatch):
    asked, seen = {"name": "torch", "file": "none", "record": RECORD, "num_runs": 1}, []

    def load(file, record, threads):
        return lambda images: seen.append((len(images), threads))

    monkeypatch.setattr(module, "num_cores", lambda: 4)
    monkeypatch.setattr(to_torch, "load", load)
    found = module.measured(asked | {"batch_sizes": [1, 2]})
    assert list(found) == [
        "batch 1, 1 thread", "batch 1, 4 threads", "batch 2, 1 thread", "batch 2, 4 threads"
    ]  # fmt: skip
    assert set(seen) == {(1, 1), (1, 4), (2, 1), (2, 4)}


@pytest.mark.slow
def test_a_process_of_its_own_measures_every_case(tmp_path):
    _, said = compared(small_encoder("augreg"), "timm", "fp32", tmp_path)
    found = measure("timm", tmp_path / "network.safetensors", RECORD | said, [1, 2], 3)
    assert list(found)[0] == "batch 1, 1 thread"
    assert len(found) == 2 * len({1, num_cores()})
    for case in found.values():
        assert case["runs"] == 3 and 0 < case["median_ms"] <= case["p95_ms"]
        assert case["peak_mib"] is None or case["peak_mib"] > 10


def test_what_ends_the_process_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(RunError, match="can't be measured in a process of its own: it was killed"):
        measure("timm", tmp_path / "none", RECORD, [1], 1)
