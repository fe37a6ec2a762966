"""Logit distillation: DeiT's two losses, the head that learns, the images, and refusals."""

import importlib
from dataclasses import fields, replace

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods import TASK_METHODS, PerTaskMethodOptions
from limbeck.methods.distiller import Distiller
from limbeck.methods.logit import Logit
from limbeck.methods.options import LogitOptions
from limbeck.methods.teacher import Teacher
from limbeck.ops.losses import logit_divergence
from limbeck.records import Batch, Features, Tap
from limbeck.tasks.classification import Classification
from tests.fakes import FakeEncoder

CPU = torch.device("cpu")
HARD, SOFT = LogitOptions(), LogitOptions(kind="soft")
both_kinds = pytest.mark.parametrize("options", [HARD, SOFT], ids=["hard", "soft"])


def batch(scale=1.0):
    images = scale * torch.rand(4, 3, 8, 8)
    soft_labels = torch.rand(4, 3).softmax(-1)
    return Batch(images, torch.rand(4, 3, 8, 8), soft_labels, tuple("abcd"), torch.arange(4))


def method_of(options, student=None, teacher=None):
    return Logit(options, (student or FakeEncoder()).facts, (teacher or FakeEncoder()).facts)


def loss_of(method, own, target):
    def features(tap, value):
        return Features(None, 1, (2, 2), {tap: value})

    return method(features(method.student_tap, own), features(Tap("logits"), target), batch()).total


def hard_formula(own, target, temperature=None):
    total = 0.0
    for z, t in zip(own, target, strict=True):
        total += -(z[t.argmax()] - z.exp().sum().log())
    return total / len(own)


def soft_formula(own, target, temperature=3.0):
    total = 0.0
    for z, t in zip(own, target, strict=True):
        p_s, p_t = (z / temperature).exp(), (t / temperature).exp()
        p_s, p_t = p_s / p_s.sum(), p_t / p_t.sum()
        for of_student, of_teacher in zip(p_s, p_t, strict=True):
            total += temperature**2 * of_teacher * (of_teacher / of_student).log()
    return total / len(own)


@pytest.mark.parametrize(
    ("options", "formula", "temperature"),
    [
        (HARD, hard_formula, None),
        (SOFT, soft_formula, 3.0),
        (LogitOptions(kind="soft", temperature=1.5), soft_formula, 1.5),
    ],
    ids=["hard", "soft", "soft at 1.5"],
)
def test_the_loss_is_the_formula_in_float64(options, formula, temperature):
    own, target = torch.randn(2, 5, 3, dtype=torch.float64) * 2
    loss = loss_of(method_of(options), own, target)
    torch.testing.assert_close(loss, formula(own, target, temperature))


@both_kinds
def test_the_gradient_is_that_of_finite_differences(options):
    own, target = torch.randn(2, 3, 3, dtype=torch.float64)
    method = method_of(options)
    assert torch.autograd.gradcheck(
        lambda logits: loss_of(method, logits, target), own.requires_grad_()
    )


def test_soft_is_least_at_the_teacher_itself():
    logits = torch.randn(4, 3)
    assert loss_of(method_of(SOFT), logits, logits).abs() < 1e-6
    assert loss_of(method_of(SOFT), logits + 1, logits).abs() < 1e-5  # a softmax feels no constant


def test_the_teachers_logits_are_a_constant():
    own, target = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    logit_divergence(own, target, 3.0).backward()
    assert own.grad is not None and target.grad is None


@both_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_extreme_logits_and_in_half_precision(options, dtype):
    own = torch.tensor([[1e4, -1e4, 0.0], [-6e4, 6e4, 6e4]], dtype=dtype, requires_grad=True)
    loss = loss_of(method_of(options), own, own.detach().flip(1))
    loss.backward()
    assert loss.isfinite() and own.grad.isfinite().all()
    assert loss.dtype == torch.float32


def test_deits_values_are_the_defaults():
    assert [(m.task_weight, m.own_weight) for m in map(method_of, (HARD, SOFT))] == [
        (0.5, 0.5),
        (0.9, 0.1),
    ]
    assert method_of(SOFT).temperature == 3.0
    method = method_of(replace(HARD, weight=0.25))
    assert (method.task_weight, method.own_weight) == (0.75, 0.25)


@both_kinds
def test_with_a_task_the_student_runs_once_and_the_parts_add_up(options):
    student, teacher = FakeEncoder(), FakeEncoder(seed=1)
    method, task = method_of(options, student, teacher), Classification(student)
    distiller = Distiller(student, method, Teacher(teacher, CPU, "fp32"), task)
    one = batch()
    losses = distiller(one)
    assert (student.num_calls, teacher.num_calls) == (1, 1)
    own = student(one.images, None, (Tap("logits"),)).taps[Tap("logits")]
    target = teacher(one.images, None, (Tap("logits"),)).taps[Tap("logits")]
    share = method.own_weight
    expected = {
        "class": (1 - share) * -(one.labels * own.log_softmax(-1)).sum(-1).mean(),
        "logit": share * loss_of(method, own, target),
    }
    torch.testing.assert_close(losses.parts, {k: v.detach() for k, v in expected.items()})
    torch.testing.assert_close(losses.total, sum(expected.values()))


def test_of_two_heads_each_has_its_own_teacher():
    """The labels do not reach the distillation head, nor the teacher the class head."""
    student = FakeEncoder(num_prefix_tokens=2, has_dist_head=True)
    method = method_of(HARD, student)
    assert method.student_taps == (Tap("dist_logits"),)
    task = Classification(student, Tap("class_logits"))
    one = batch()
    features = student(one.images, None, (*method.student_taps, *task.taps))
    teacher = Features(None, 1, (2, 2), {Tap("logits"): torch.rand(4, 3)})
    for loss, learns, rests in (
        (task.loss(features, one).total, student.head, student.head_dist),
        (method(features, teacher, one).total, student.head_dist, student.head),
    ):
        student.zero_grad()
        loss.backward(retain_graph=True)
        assert learns.weight.grad.abs().sum() > 0
        assert rests.weight.grad is None


def test_the_teacher_sees_the_students_very_images():
    one = batch()
    assert not torch.equal(one.teacher_images, one.images)
    assert method_of(HARD).prepare(one).teacher_images is one.images


def test_the_teacher_may_have_another_grid_of_patches():
    class Wide(FakeEncoder):
        def __init__(self):
            super().__init__()
            self._facts["img_size"] = (16, 16)

    student, teacher = FakeEncoder(), Wide()
    distiller = Distiller(
        student, method_of(HARD), Teacher(teacher, CPU, "fp32"), Classification(student)
    )
    assert distiller(batch()).total.isfinite()


def test_what_is_no_teacher_of_these_classes_is_refused():
    student = FakeEncoder().facts
    with pytest.raises(UserError, match="The teacher fake has no classifier; fine-tune it first"):
        Logit(HARD, student, replace(student, num_classes=0))
    with pytest.raises(UserError, match="knows 5 classes and the student learns 3; choose"):
        Logit(HARD, student, replace(student, num_classes=5))


def test_options_without_effect_or_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"logit\.temperature has no effect with hard labels"):
        LogitOptions(temperature=2.0)
    for weight in (0.0, 1.0):
        with pytest.raises(UserError, match="weight"):
            LogitOptions(weight=weight)


def test_a_segmenter_is_no_teacher_of_images():
    facts = FakeEncoder().facts
    with pytest.raises(UserError, match="tells the classes of pixels.*choose a classifier"):
        Logit(HARD, facts, replace(facts, has_maps=True))


def test_each_method_has_its_options_and_each_options_section_its_method():
    sections = {field.name.replace("_", "-"): field for field in fields(PerTaskMethodOptions)}
    assert set(sections) == set(TASK_METHODS)
    for name, address in TASK_METHODS.items():
        module, _, kind = address.partition(":")
        assert type(sections[name].default) is vars(importlib.import_module(module))[kind].Options
