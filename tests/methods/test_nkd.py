"""NKD: its golden numbers, its formula in float64, the labels that it takes, and refusals."""

import math
from dataclasses import replace

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.distiller import Distiller
from limbeck.methods.nkd import Nkd
from limbeck.methods.options import NkdOptions
from limbeck.methods.teacher import Teacher
from limbeck.ops.losses import normalised_divergence
from limbeck.records import Batch, Features, Tap
from limbeck.tasks.classification import Classification
from tests.fakes import FakeEncoder

CPU = torch.device("cpu")
LOGITS = Tap("logits")
STUDENT, TEACHER = torch.tensor([[2.0, 1, 0, -1]]), torch.tensor([[3.0, 0, 1, -2]])


def facts_of(num_classes=3, **changes):
    return replace(FakeEncoder().facts, num_classes=num_classes, **changes)


def loss_of(own, target, labels, **options):
    facts = facts_of(own.shape[1])
    method = Nkd(NkdOptions(**options), facts, facts)
    sides = (Features(None, 1, (2, 2), {LOGITS: logits}) for logits in (own, target))
    images = torch.rand(len(own), 3, 8, 8)
    keys = tuple(map(str, range(len(own))))
    return method(*sides, Batch(images, images, labels, keys, torch.arange(len(own)))).total


@pytest.mark.parametrize(
    ("own", "target", "options", "expected"),
    [
        (STUDENT, TEACHER, {}, 1.552558),
        (TEACHER, TEACHER, {}, 0.861127),
        (torch.zeros(1, 4), torch.zeros(1, 4), {}, 1.445186),
        (STUDENT, TEACHER, {"temperature": 2.0, "alpha": 0.5}, 2.520322),
    ],
)
def test_golden_numbers(own, target, options, expected):
    soft = torch.tensor([[0.7, 0.3, 0.0, 0.0]])
    for labels in (torch.tensor([0]), soft):
        assert loss_of(own, target, labels, **options).item() == pytest.approx(expected, rel=1e-6)
        twice = (x.expand(2, *x.shape[1:]) for x in (own, target, labels))  # mean over the batch
        assert loss_of(*twice, **options).item() == pytest.approx(expected, rel=1e-6)


def formula(own, target, targets, temperature, alpha):
    """One image and class after the other."""
    total = 0.0
    for z, z_teacher, t in zip(own, target, targets.tolist(), strict=True):
        weight = z_teacher.exp()[t] / z_teacher.exp().sum()
        total = total - weight * (z.exp()[t] / z.exp().sum()).log()
        rest = [i for i in range(len(z)) if i != t]
        sum_s = sum((z[i] / temperature).exp() for i in rest)
        sum_t = sum((z_teacher[i] / temperature).exp() for i in rest)
        for i in rest:
            of_teacher = (z_teacher[i] / temperature).exp() / sum_t
            of_student = (z[i] / temperature).exp() / sum_s
            total = total - alpha * temperature**2 * of_teacher * of_student.log()
    return total / len(own)


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (3.0, 0.4)])
def test_the_loss_is_the_formula_in_float64(temperature, alpha):
    own, target = torch.randn(2, 5, 6, dtype=torch.float64) * 2
    labels = torch.rand(5, 6).softmax(-1)
    found = loss_of(own, target, labels, temperature=temperature, alpha=alpha)
    expected = formula(own, target, labels.argmax(-1), temperature, alpha)
    torch.testing.assert_close(found, expected)


def test_the_gradient_is_that_of_finite_differences():
    own, target = torch.randn(2, 3, 4, dtype=torch.float64)
    targets = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(
        lambda logits: loss_of(logits, target, targets, temperature=2.0, alpha=0.5),
        own.requires_grad_(),
    )


def test_the_teachers_logits_are_a_constant():
    own, target = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    normalised_divergence(own, target, torch.tensor([0, 1, 2, 0]), 1.0, 1.0).backward()
    assert own.grad is not None and target.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_and_right_at_huge_logits_and_in_half_precision(dtype):
    own = torch.tensor([[1e4, -1e4, 0.0], [-6e4, 6e4, 6e4]], dtype=dtype, requires_grad=True)
    target = own.detach().flip(1)
    loss = loss_of(own, target, torch.tensor([1, 0]))
    loss.backward()
    assert loss.isfinite() and own.grad.isfinite().all() and loss.dtype == torch.float32
    # Row 1: the teacher gives the target nothing, and of the others it is sure of class 2, which
    # the student has 1e4 below class 0. Row 2: half of the teacher is on the target, which the
    # student has 1.2e5 below the others (and ln 2), and of these the teacher is sure of class 1.
    top = own.detach().double().tolist()
    first = top[0][0] - top[0][2]
    second = 0.5 * (top[1][1] - top[1][0] + math.log(2)) + math.log(2)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_it_takes_the_place_of_the_labels_cross_entropy():
    """All of the loss is the method's, and the student runs once."""
    student, teacher = FakeEncoder(), FakeEncoder(seed=1)
    method = Nkd(NkdOptions(), student.facts, teacher.facts)
    distiller = Distiller(student, method, Teacher(teacher, CPU, "fp32"), Classification(student))
    images, labels = torch.rand(4, 3, 8, 8), torch.rand(4, 3).softmax(-1)
    one = Batch(images, torch.rand(4, 3, 8, 8), labels, tuple("abcd"), torch.arange(4))
    losses = distiller(one)
    assert (student.num_calls, teacher.num_calls) == (1, 1)
    # The teacher, too, sees the mixed image.
    own, target = (net(images, None, (LOGITS,)).taps[LOGITS] for net in (student, teacher))
    expected = formula(own.double(), target.double(), labels.argmax(-1), 1.0, 1.0)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses.parts == {"nkd": losses.total.detach()}


def test_what_it_can_not_teach_is_refused():
    facts = facts_of()
    with pytest.raises(UserError, match="the student has two heads; choose --head single, or --me"):
        Nkd(NkdOptions(), facts_of(has_dist_head=True), facts)
    with pytest.raises(UserError, match="The teacher fake has no classifier; fine-tune it first"):
        Nkd(NkdOptions(), facts, facts_of(0))
    with pytest.raises(UserError, match="knows 5 classes and the student learns 3; choose"):
        Nkd(NkdOptions(), facts, facts_of(5))
    with pytest.raises(UserError, match="there are none"):
        Nkd(NkdOptions(), facts_of(1), facts_of(1))
    for option in ("temperature", "alpha"):
        with pytest.raises(UserError, match=option):
            NkdOptions(**{option: 0.0})
