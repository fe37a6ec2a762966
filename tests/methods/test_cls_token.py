"""CLS-token distillation against a loop written from the formula."""

import math

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.cls_token import ClsToken
from limbeck.methods.options import ClsTokenOptions
from limbeck.records import Batch, Features
from tests.fakes import FakeEncoder

NO_BATCH = Batch(torch.zeros(1), torch.zeros(1), None, (), torch.zeros(1))


def softmax(values):
    weights = [math.exp(value) for value in values]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_equals_a_loop_written_from_the_formula(temperature):
    student, teacher = FakeEncoder(embed_dim=8), FakeEncoder(embed_dim=12, seed=1)
    options = ClsTokenOptions(temperature=temperature)
    method = ClsToken(options, student.facts, teacher.facts).double()
    own = torch.randn(3, 5, 8, dtype=torch.float64)
    target = 3 * torch.randn(3, 5, 12, dtype=torch.float64) + 1
    losses = method(
        Features(None, 1, (2, 2), {method.own: own}),
        Features(None, 1, (2, 2), {method.target: target}),
        NO_BATCH,
    )
    total = 0.0
    for x, y in zip(own[:, 0].tolist(), target[:, 0].tolist(), strict=True):
        guess = [
            (sum(map(float.__mul__, row, x)) + offset) / temperature
            for row, offset in zip(
                method.proj.weight.tolist(), method.proj.bias.tolist(), strict=True
            )
        ]
        mean = sum(y) / 12
        std = math.sqrt(sum((value - mean) ** 2 for value in y) / 12 + 1e-6)
        t, s = softmax([(value - mean) / std / temperature for value in y]), softmax(guess)
        total += sum(a * math.log(a / b) for a, b in zip(t, s, strict=True))
    assert losses.parts["cls"].item() == pytest.approx(total / 3, rel=1e-10)


def test_only_the_cls_token_counts():
    student, teacher = FakeEncoder(), FakeEncoder(seed=1)
    method = ClsToken(ClsTokenOptions(), student.facts, teacher.facts)
    x = torch.rand(2, 3, 8, 8)
    s, t = student(x, None, method.student_taps), teacher(x, None, method.teacher_taps)
    first = method(s, t, NO_BATCH).total
    s.taps[method.own][:, 1:] += 1.0
    torch.testing.assert_close(method(s, t, NO_BATCH).total, first, rtol=0, atol=0)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_without_one_is_named(role):
    with_cls, without = FakeEncoder(), FakeEncoder(num_prefix_tokens=0)
    pair = (without, with_cls) if role == "student" else (with_cls, without)
    with pytest.raises(UserError, match=f"The {role} has no CLS token"):
        ClsToken(ClsTokenOptions(), *(encoder.facts for encoder in pair))
