"""Maps of a teacher: golden numbers, sizes, what teacher and student see, and refusals."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from limbeck.engine.optim import param_groups
from limbeck.engine.options import OptimOptions
from limbeck.errors import UserError
from limbeck.methods import MAP_METHODS, PerMapMethodOptions
from limbeck.methods.distiller import Distiller
from limbeck.methods.maps import ChannelWise, PixelKl
from limbeck.methods.options import ChannelWiseOptions, PixelKlOptions
from limbeck.methods.teacher import Teacher
from limbeck.ops.dense import channel_wise_loss
from limbeck.recipes.run.networks import layer_of, method_class
from limbeck.records import Batch, Features, Tap
from limbeck.tasks.segmentation import Segmentation
from tests.fakes import FakeEncoder
from tests.models.dense.test_segmenter import small

LOGITS = Tap("logits")
# [1, C, 2, 2] in rows
STUDENT = torch.tensor([[[0.0, 1, 2, 3], [1, 1, 1, 1]]]).unflatten(2, (2, 2))
TEACHER = torch.tensor([[[3.0, 2, 1, 0], [0, 0, 0, 2]]]).unflatten(2, (2, 2))


def facts_of(num_classes=2, **changes):
    return replace(FakeEncoder().facts, num_classes=num_classes, has_maps=True, **changes)


def batch_of(images):
    keys = tuple(map(str, range(len(images))))
    maps = torch.zeros(len(images), *images.shape[2:], dtype=torch.long)
    return Batch(images, images.flip(-1), maps, keys, torch.arange(len(images)))


def losses_of(method, own, target):
    sides = (Features(None, 0, (2, 2), {LOGITS: logits}) for logits in (own, target))
    return method(*sides, batch_of(torch.zeros(len(own), 3, 8, 8)))


@pytest.mark.parametrize(
    ("own", "temperature", "expected"),
    [(STUDENT, 1.0, 2.159568), (STUDENT, 2.0, 6.431842), (TEACHER, 1.0, 0.932910)],
)
def test_golden_numbers_of_channel_wise(own, temperature, expected):
    method = ChannelWise(ChannelWiseOptions(temperature=temperature), facts_of(), facts_of())
    losses = losses_of(method, own, TEACHER)
    assert losses.total.item() == pytest.approx(expected, rel=1e-6)
    assert losses.parts == {"channel_wise": losses.total}
    assert method.own_weight == 3 and method.task_weight == 1


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.365747), (2.0, 0.490437)])
def test_golden_numbers_of_pixel_kl(temperature, expected):
    method = PixelKl(PixelKlOptions(temperature=temperature), facts_of(), facts_of())
    assert losses_of(method, STUDENT, TEACHER).total.item() == pytest.approx(2 * expected, rel=1e-5)
    assert losses_of(method, TEACHER, TEACHER).total.item() == pytest.approx(0, abs=1e-6)
    assert method.own_weight == 1


def test_a_teacher_of_another_size_is_resized_and_gets_no_gradient():
    method = ChannelWise(ChannelWiseOptions(), facts_of(3), facts_of(3))
    own = torch.randn(2, 3, 4, 6, requires_grad=True)
    target = torch.randn(2, 3, 7, 9, requires_grad=True)
    loss = losses_of(method, own, target).total
    wide = F.interpolate(target, (4, 6), mode="bilinear")
    torch.testing.assert_close(loss, channel_wise_loss(own, wide))
    loss.backward()
    assert own.grad is not None and target.grad is None


@pytest.mark.parametrize("name", MAP_METHODS)
def test_beside_the_task_with_a_teacher_of_another_head(name):
    student, teacher = small(head="upernet").train(), small("swin", head="light")
    kind = method_class(name)
    options = getattr(PerMapMethodOptions(), name.replace("-", "_"))
    assert type(options) is kind.Options
    method = kind(options, student.facts, teacher.facts)
    live = Teacher(teacher, torch.device("cpu"))
    distiller = Distiller(student, method, live, Segmentation(student))
    losses = distiller(batch_of(torch.rand(2, 3, 32, 32)))
    losses.total.backward()
    part = name.replace("-", "_")
    assert set(losses.parts) == {"pixels", "aux", part}
    torch.testing.assert_close(sum(losses.parts.values()), losses.total.detach())
    assert not live.encoder.training
    unused = [n for n, value in student.named_parameters() if value.grad is None]
    assert unused == []


def test_the_teacher_sees_the_student_s_images_and_the_student_s_dropout_is_inside():
    student, teacher = small(dropout=0.5).train(), small()
    method = ChannelWise(ChannelWiseOptions(), student.facts, teacher.facts)
    distiller = Distiller(student, method, Teacher(teacher, torch.device("cpu")))
    batch = batch_of(torch.rand(2, 3, 32, 32))
    torch.manual_seed(1)
    found = distiller(batch).total
    torch.manual_seed(1)
    own = student(batch.images, None, (LOGITS,)).taps[LOGITS]
    target = teacher(batch.images, None, (LOGITS,)).taps[LOGITS]
    torch.testing.assert_close(found, channel_wise_loss(own, target))
    torch.manual_seed(2)
    assert distiller(batch).total != found


def test_what_can_not_teach_is_refused():
    kind, options, facts = ChannelWise, ChannelWiseOptions(), facts_of()
    with pytest.raises(UserError, match="need a teacher; name one with --teacher"):
        kind(options, facts, None)
    with pytest.raises(UserError, match="The teacher has no maps of classes to compare"):
        kind(options, facts, FakeEncoder().facts)
    with pytest.raises(UserError, match="The student has no maps"):
        kind(options, FakeEncoder().facts, facts)
    with pytest.raises(UserError, match="knows 5 classes and the student learns 2"):
        kind(options, facts, facts_of(5))


@pytest.mark.parametrize("beside_a_teacher", [True, False])
def test_learning_rates_are_those_of_the_segmenter_in_what_is_trained(beside_a_teacher):
    """The optimiser is built of this module, before it is wrapped for several processes."""
    student, teacher = small(head="upernet"), small()
    module = task = Segmentation(student)
    if beside_a_teacher:
        method = ChannelWise(ChannelWiseOptions(), student.facts, teacher.facts)
        live = Teacher(teacher, torch.device("cpu"))
        module = Distiller(student, method, live, task)
    groups = param_groups(module, OptimOptions(layer_decay=0.5), partial(layer_of, student), 3)
    scales = {id(value): group["lr_scale"] for group in groups for value in group["params"]}
    for name, value in student.named_parameters():
        assert scales.pop(id(value)) == 0.5 ** (4 - student.layer_id(name))
    assert not scales
