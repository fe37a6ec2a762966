"""Costs of shapes: of the real network, once each, and kept."""

import json

import pytest

from limbeck.evaluation.cost import count_macs
from limbeck.models.build import build_student
from limbeck.recipes.study import meter as metering
from limbeck.recipes.study.meter import Meter
from limbeck.recipes.study.options import LatencyOptions
from tests.models.test_contraction import PLAIN, TINY


@pytest.mark.parametrize("shape", [PLAIN, TINY], ids=["plain", "stages"])
def test_costs_are_those_of_the_real_network(shape, tmp_path):
    meter = Meter(tmp_path / "costs.json", shape, LatencyOptions(runtime="torch", num_turns=1))
    encoder = build_student(shape, seed=0)
    assert meter.cost(shape, "params") == sum(p.numel() for p in encoder.model.parameters())
    assert meter.cost(shape, "macs") == count_macs(encoder)
    assert meter.cost(shape, "latency_ms") > 0
    assert "PyTorch, fp32, batch 1, 1 thread" in meter.sentence()


def test_a_cost_is_measured_once_also_by_the_next_process(tmp_path, monkeypatch):
    built = []
    real = metering.build_student
    monkeypatch.setattr(metering, "build_student", lambda *a, **k: built.append(a) or real(*a, **k))
    file = tmp_path / "costs.json"
    meter = Meter(file, PLAIN, LatencyOptions(runtime="torch", num_turns=1))
    first = meter.cost(PLAIN, "latency_ms")
    again = Meter(file, PLAIN, LatencyOptions(runtime="torch", num_turns=1)).cost(
        PLAIN, "latency_ms"
    )
    assert again == first == json.loads(file.read_text())[PLAIN.text]["latency_ms"]
    assert len(built) == 1


def test_a_latency_is_told_relative_to_the_seeds(tmp_path, monkeypatch):
    taken = iter([(0.010, 0.010), (0.006, 0.012)])  # the machine is slower the second time
    monkeypatch.setattr(metering, "interleaved", lambda *_: next(taken))
    meter = Meter(tmp_path / "costs.json", PLAIN, LatencyOptions(runtime="torch"))
    assert meter.cost(PLAIN, "latency_ms") == pytest.approx(10)
    smaller = type(PLAIN)(**vars(PLAIN) | {"depth": 1})
    assert meter.cost(smaller, "latency_ms") == pytest.approx(5)
