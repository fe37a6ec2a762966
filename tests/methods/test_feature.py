"""Feature distillation against loops written from the formula."""

import math

import pytest
import torch

from limbeck.methods.feature import Feature
from limbeck.methods.options import FeatureOptions
from limbeck.records import Batch, Features, Tap
from tests.fakes import FakeEncoder
from tests.methods.arms import TARGETS

NO_BATCH = Batch(torch.zeros(1), torch.zeros(1), None, (), torch.zeros(1))


def loop_loss(own, target, weight, bias, beta):
    """Smooth L1 of proj(own) to the whitened target, all lists; mean over tokens and channels."""
    total, count = 0.0, 0
    for x, y in zip(own, target, strict=True):
        mean = sum(y) / len(y)
        std = math.sqrt(sum((value - mean) ** 2 for value in y) / len(y) + 1e-6)
        for row, offset, value in zip(weight, bias, y, strict=True):
            guess = sum(map(float.__mul__, row, x)) + offset
            error = abs(guess - (value - mean) / std)
            total += 0.5 * error**2 / beta if error <= beta else error - 0.5 * beta
            count += 1
    return total / count


def channels(value, sample):
    """Tokens as lists of channels; heads are contiguous slices of the channels."""
    if value.ndim == 3:
        return value[sample].tolist()
    heads = value[sample].tolist()  # [nh][N][hd]
    return [[x for head in heads for x in head[token]] for token in range(value.shape[2])]


@pytest.mark.parametrize("beta", [2.0, 0.1])
@pytest.mark.parametrize("target", TARGETS)
def test_equals_a_loop_written_from_the_formula(target, beta):
    student, teacher = FakeEncoder(embed_dim=8), FakeEncoder(embed_dim=12, num_heads=3, seed=1)
    options = FeatureOptions(target=target, beta=beta)
    method = Feature(options, student.facts, teacher.facts).double()
    sides = []
    for taps, heads, dim in ((method.student_taps, 2, 8), (method.teacher_taps, 3, 12)):
        drawn = {}
        for tap in taps:
            shape = (2, heads, 5, dim // heads) if tap.kind in _HEADS else (2, 5, dim)
            drawn[tap] = 2 * torch.randn(*shape, dtype=torch.float64)
        sides.append(Features(None, 1, (2, 2), drawn))
    losses = method(*sides, NO_BATCH)
    assert len(losses.parts) == (3 if target == "qkv" else 1)
    for own, aim, proj in zip(method.student_taps, method.teacher_taps, method.proj, strict=True):
        samples = [
            loop_loss(
                channels(sides[0].taps[own], sample),
                channels(sides[1].taps[aim], sample),
                proj.weight.tolist(),
                proj.bias.tolist(),
                beta,
            )
            for sample in range(2)
        ]
        assert losses.parts[aim.kind].item() == pytest.approx(sum(samples) / 2, rel=1e-10)


_HEADS = ("queries", "keys", "values")


@pytest.mark.parametrize(
    ("target", "kinds"),
    [
        ("qkv", ["queries", "keys", "values"]),
        ("queries", ["queries"]),
        ("keys", ["keys"]),
        ("values", ["values"]),
        ("attention_output", ["attention_output"]),
        ("attention_tokens", ["attention_tokens"]),
        ("mlp_output", ["mlp_output"]),
        ("tokens", ["tokens"]),
    ],
)
def test_what_each_target_taps(target, kinds):
    options = FeatureOptions(target=target, student_block=0, teacher_block=3)
    method = Feature(options, FakeEncoder(depth=2).facts, FakeEncoder(depth=5).facts)
    assert method.student_taps == tuple(Tap(kind, 0) for kind in kinds)
    assert method.teacher_taps == tuple(Tap(kind, 3) for kind in kinds)


def test_the_target_output_taps_the_end():
    method = Feature(FeatureOptions(target="output"), FakeEncoder().facts, FakeEncoder().facts)
    assert method.student_taps == method.teacher_taps == (Tap("output"),)


def test_each_side_has_its_own_block():
    student, teacher = FakeEncoder(depth=2), FakeEncoder(depth=5)
    options = FeatureOptions(target="mlp_output", student_block=0, teacher_block=3)
    method = Feature(options, student.facts, teacher.facts)
    assert [tap.block for tap in method.student_taps + method.teacher_taps] == [0, 3]


def test_the_projection_belongs_to_the_method_and_maps_to_the_teacher_s_width():
    method = Feature(FeatureOptions(), FakeEncoder().facts, FakeEncoder(embed_dim=12).facts)
    assert [proj.weight.shape for proj in method.proj] == [(12, 8)] * 3  # queries, keys, values
