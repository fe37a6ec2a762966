"""Latency: of the real network, in turns, on as many threads as were asked for."""

import os

import torch

from limbeck.engine.machine import cpu_name
from limbeck.evaluation.latency import (
    busy_note,
    describe_machine,
    interleaved,
    threads,
    torch_pass,
)
from limbeck.limits import num_cores
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions


def test_passes_take_turns_and_medians_of_the_fastest_are_told():
    calls = []
    ticks = iter([0, 9, 9, 18, 18, 27] * 2 + sum([[0, k, k, k + 5, k + 5, k + 11] for k in
                 (1, 2, 3, 4, 8, 6)], []))  # fmt: skip
    own, reference = interleaved(
        [lambda: calls.append("own"), lambda: calls.append("reference")], 3, lambda: next(ticks)
    )
    assert calls == (["own"] * 3 + ["reference"] * 3) * 4
    assert own == 3 and reference == 4  # own: 1, 3, 5 (of 5, 6 and 8); reference: 2, 4, 5


def test_a_deeper_network_takes_longer_and_is_run_for_real():
    def build(depth):
        name = f"vit_tiny:img_size=32:patch_size=8:embed_dim=48:num_heads=3:depth={depth}"
        return build_student(StudentOptions(name=name), seed=0)

    deep, shallow = build(12), build(1)
    seen = []
    deep.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    with threads(1):
        own, reference = interleaved([torch_pass(deep, 2), torch_pass(shallow, 2)], 5)
    assert own > 2 * reference > 0
    assert seen == [(2, 3, 32, 32)] * 18  # six turns of three


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_machine_has_a_name():
    assert describe_machine() == f"{cpu_name()}, {num_cores()} cores"


def test_a_busy_machine_is_told(monkeypatch):
    for load, told in ((7.5, "The machine is busy (load 7.5 on 2 cores), so that"), (2.9, "")):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0, 0), raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        assert busy_note().startswith(told) and bool(busy_note()) == bool(told)
