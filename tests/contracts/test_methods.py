"""Every arm of every method keeps the contract: taps, losses, gradients, extreme input."""

import importlib
from dataclasses import fields

import pytest
import torch

from limbeck.data.options import CropOptions
from limbeck.errors import UserError
from limbeck.methods import METHODS, PerMethodOptions
from limbeck.methods.distiller import Distiller
from limbeck.methods.method import Method
from limbeck.methods.teacher import Teacher
from limbeck.records import Batch
from tests.fakes import FakeEncoder
from tests.methods.arms import ARMS


def build(arm, *, student=None, teacher=None):
    """(distiller, teacher encoder) of an arm on fakes."""
    method_class, values = ARMS[arm]
    student = student or FakeEncoder()
    options = method_class.Options(**values)
    decoder_depth = 4 if options.reads_decoder else 0
    stand_in = FakeEncoder(embed_dim=16, decoder_depth=decoder_depth, seed=1)
    teacher = (teacher or stand_in) if options.needs_teacher else None
    method = method_class(options, student.facts, teacher and teacher.facts)
    for tap in method.student_taps:
        if tap.num_heads is not None:
            student.set_num_heads(tap.block, tap.num_heads)
    value = teacher and Teacher(teacher, torch.device("cpu"), "fp32")
    return Distiller(student, method, value), teacher


def batch(arm, scale=1.0):
    """Four views: of four images, or of two."""
    method_class, values = ARMS[arm]
    num_views = len(method_class.Options(**values).views(CropOptions()))
    images = scale * torch.rand(4, 3, 8, 8)
    return Batch(images, images, None, tuple("abcd"[: 4 // num_views]), torch.arange(4))


arms = pytest.mark.parametrize("arm", ARMS)


def test_each_method_has_its_options_and_each_options_section_its_method():
    sections = {field.name.replace("_", "-"): field for field in fields(PerMethodOptions)}
    assert set(sections) == set(METHODS)
    classes = {}
    for name, address in METHODS.items():
        module, _, kind = address.partition(":")
        classes[name] = vars(importlib.import_module(module))[kind]
        assert type(sections[name].default) is classes[name].Options
    assert {method_class for method_class, _ in ARMS.values()} == set(classes.values())


@arms
def test_gives_a_scalar_and_parts_that_add_up(arm):
    distiller, _ = build(arm)
    losses = distiller(batch(arm))
    assert losses.total.shape == () and losses.total.requires_grad
    assert losses.parts and not any(part.requires_grad for part in losses.parts.values())
    torch.testing.assert_close(sum(losses.parts.values()), losses.total.detach())


@arms
def test_gradient_reaches_the_student_and_never_the_teacher(arm):
    distiller, teacher = build(arm)
    distiller(batch(arm)).total.backward()
    assert distiller.student.weight.grad.abs().sum() > 0
    for parameter in distiller.method.parameters():
        assert parameter.grad is not None or not parameter.requires_grad
    if teacher is not None:
        assert teacher.weight.grad is None and not teacher.weight.requires_grad


@arms
def test_finite_on_extreme_and_on_half_precision_input(arm):
    distiller, _ = build(arm)
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            losses = distiller(batch(arm, scale=1e3))
        losses.total.backward()
        assert losses.total.isfinite()
        assert distiller.student.weight.grad.isfinite().all()


@arms
def test_the_teacher_is_a_value(arm):
    distiller, teacher = build(arm)
    if teacher is None:
        assert distiller.teacher is None
        return
    distiller.train()
    assert not teacher.training and distiller.student.training
    assert not any("teacher" in key for key in distiller.state_dict())
    held = {id(parameter) for parameter in distiller.parameters()}
    assert not held & {id(parameter) for parameter in teacher.parameters()}


@arms
def test_a_missing_tap_is_named_with_what_is_offered(arm):
    class Poor(FakeEncoder):
        def offered_taps(self):
            return ("class_logits",)

    with pytest.raises(UserError, match="offers only class_logits"):
        build(arm, student=Poor())


@arms
def test_the_same_seeds_give_the_same_losses(arm):
    distiller, _ = build(arm)
    one = batch(arm)
    torch.testing.assert_close(distiller(one).total, distiller(one).total, rtol=0, atol=0)


def test_method_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Method()
