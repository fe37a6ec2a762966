"""CLS-token distillation against a loop written from the formula."""

import math

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.cls_token import ClsToken
from limbeck.methods.distiller import Distiller
from limbeck.methods.options import ClsTokenOptions
from limbeck.methods.teacher import Teacher
from limbeck.records import Batch, Features, Tap
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


def test_what_is_tapped():
    options = ClsTokenOptions(student_block=0, teacher_block=3)
    method = ClsToken(options, FakeEncoder(depth=2).facts, FakeEncoder(depth=5).facts)
    assert method.student_taps == (Tap("tokens", 0),)
    assert method.teacher_taps == (Tap("tokens", 3),)


@pytest.mark.parametrize(
    ("masked", "needs_same_grid"),
    [
        ({}, False),
        ({"mask_ratio": 0.5}, True),
        ({"mask_ratio": 0.5, "teacher_sees": "all"}, False),
    ],
)
def test_grids_may_differ_where_the_teacher_is_not_told_what_to_see(masked, needs_same_grid):
    class Wide(FakeEncoder):
        def __init__(self):
            super().__init__(seed=1)
            self._facts["img_size"] = (16, 16)

    student, teacher = FakeEncoder(), Wide()
    method = ClsToken(ClsTokenOptions(**masked), student.facts, teacher.facts)
    pair = (student, method, Teacher(teacher, torch.device("cpu"), "fp32"))
    if needs_same_grid:
        with pytest.raises(UserError, match="4 x 4 .* one of 2 x 2; set --teacher.img-size 8"):
            Distiller(*pair)
        return
    images = torch.rand(2, 3, 8, 8)
    losses = Distiller(*pair)(Batch(images, images, None, ("a", "b"), torch.arange(2)))
    assert losses.total.isfinite()


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_without_one_is_named(role):
    with_cls, without = FakeEncoder(), FakeEncoder(num_prefix_tokens=0)
    pair = (without, with_cls) if role == "student" else (with_cls, without)
    with pytest.raises(UserError, match=f"The {role} has no CLS token"):
        ClsToken(ClsTokenOptions(), *(encoder.facts for encoder in pair))
