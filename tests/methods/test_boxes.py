"""What a detector teaches: FRS of equal maps, dense answers against slow loops, refusals."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou

from limbeck.errors import UserError
from limbeck.methods import BOX_METHODS, PerBoxMethodOptions
from limbeck.methods.boxes import DenseAnswers, FeatureRichness
from limbeck.methods.distiller import Distiller
from limbeck.methods.options import DenseAnswersOptions, FeatureRichnessOptions
from limbeck.methods.teacher import Teacher
from limbeck.ops.dense import feature_richness_losses
from limbeck.recipes.run.networks import method_class
from limbeck.records import Batch, Tap
from limbeck.tasks.detection import Detection
from tests.fakes import FakeEncoder
from tests.models.dense.test_light_detector import SIDE, images, objects, small


def batch_of(count=2):
    seen = images(count)
    keys = tuple(map(str, range(count)))
    return Batch(seen, seen.flip(-1), None, keys, torch.arange(count), objects=objects(count))


def answer(detector, method, batch):
    return detector(batch.images, None, method.student_taps)


@pytest.mark.parametrize("name", BOX_METHODS)
def test_a_teacher_whose_maps_are_of_another_size_is_told(name):
    """Odd grids are halved up by some encoders, down by others."""
    detector = small()
    options = getattr(PerBoxMethodOptions(), name.replace("-", "_"))
    method = method_class(name)(options, detector.facts, detector.facts)
    own = answer(detector, method, batch_of())
    larger = {tap: F.pad(value, (0, 1, 0, 1)) for tap, value in own.taps.items()}
    with pytest.raises(UserError, match="choose a multiple of 64"):
        method(own, replace(own, taps=larger), batch_of())


@pytest.mark.parametrize("name", BOX_METHODS)
def test_every_method_learns_beside_the_task_and_leaves_the_teacher_alone(name):
    student, teacher = small().train(), small(width=24, seed=1)
    options = getattr(PerBoxMethodOptions(), name.replace("-", "_"))
    method = method_class(name)(options, student.facts, teacher.facts)
    method.after_step(500, 1000)
    module = Distiller(student, method, Teacher(teacher, torch.device("cpu")), Detection(student))
    losses = module.train()(batch_of())
    assert not teacher.training
    own = {"richness", "objectness"} if "feature" in name else {"taught_class", "taught_box"}
    assert set(losses.parts) == {"class", "box", "one_class", "one_box", *own}
    assert losses.total.item() == pytest.approx(sum(v.item() for v in losses.parts.values()))
    losses.total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in module.parameters())


def test_richness_of_equal_maps_and_identity_adapters_is_zero():
    detector = small().eval()
    method = FeatureRichness(FeatureRichnessOptions(warmup_steps=0), detector.facts, detector.facts)
    with torch.no_grad():
        for adapter in method.adapters:
            torch.nn.init.dirac_(adapter.weight)
            adapter.bias.zero_()
    features = answer(detector, method, batch_of())
    losses = method(features, features, batch_of())
    assert losses.parts["richness"] == 0
    probs = [features.taps[tap].sigmoid() for tap in method.objectness]
    entropy = sum(
        (p.amax(1) * F.binary_cross_entropy(p, p, reduction="none").sum(1)).sum() / p.amax(1).sum()
        for p in probs
    )
    assert losses.total.item() == pytest.approx(0.1 * entropy.item(), rel=1e-5)


def test_richness_rises_over_its_warm_up():
    student, teacher = small().eval(), small(width=24, seed=1).eval()
    method = FeatureRichness(FeatureRichnessOptions(), student.facts, teacher.facts)
    own, target = (answer(each, method, batch_of()) for each in (student, teacher))
    totals = []
    for step in (0, 125, 500, 900):
        method.after_step(step, 1000)
        totals.append(method(own, target, batch_of()).total.item())
    assert totals[0] == 0 and totals[3] == totals[2]
    assert totals[1] == pytest.approx(totals[2] / 4, rel=1e-5)
    maps, anchors = feature_richness_losses(
        [a(own.taps[t]) for a, t in zip(method.adapters, method.maps, strict=True)],
        [target.taps[t] for t in method.maps],
        [own.taps[t] for t in method.objectness], [target.taps[t] for t in method.objectness],
    )  # fmt: skip
    assert totals[2] == pytest.approx((0.001 * maps + 0.1 * anchors).item(), rel=1e-5)
    assert "num_steps" in method.state_dict()  # a run that goes on is as warm as it was


def test_dense_answers_are_the_formula():
    student, teacher = small().eval(), small(seed=1).eval()
    options = DenseAnswersOptions(class_weight=3.0, box_weight=0.5, sharpness=2.0)
    method = DenseAnswers(options, student.facts, teacher.facts)
    with torch.no_grad():
        own, target = (answer(each, method, batch_of()) for each in (student, teacher))
        losses = method(own, target, batch_of())
    classes = boxes = weights = 0.0
    for level in range(3):
        kinds, sides = Tap("class_maps", level), Tap("box_maps", level)
        said, wanted = (f.taps[kinds].double().sigmoid() for f in (own, target))
        entropies = -(wanted * said.log() + (1 - wanted) * (1 - said).log())
        classes += float(((said - wanted).abs() ** 2 * entropies).sum())
        for b in range(2):
            for y in range(said.shape[2]):
                for x in range(said.shape[3]):
                    pair = [f.taps[sides][b, :, y, x].double() for f in (own, target)]
                    corners = [torch.stack((-p[0], -p[1], p[2], p[3])) for p in pair]
                    overlap = generalized_box_iou(corners[0][None], corners[1][None])
                    weight = float(wanted[b, :, y, x].max())
                    boxes += weight * float(1 - overlap)
                    weights += weight
    weights = max(weights, 1.0)
    assert losses.parts["taught_class"].item() == pytest.approx(3 * classes / weights, rel=1e-4)
    assert losses.parts["taught_box"].item() == pytest.approx(0.5 * boxes / weights, rel=1e-4)


def test_a_teacher_of_other_patches_has_its_boxes_scaled():
    student = small().eval()
    facts = replace(student.facts, level_strides=(8, 16, 32), img_size=(128, 128))
    method = DenseAnswers(DenseAnswersOptions(), student.facts, facts)
    assert method.scale == 0.5
    own = answer(student, method, batch_of())
    twice = {tap: value * 2 if tap.kind == "box_maps" else value for tap, value in own.taps.items()}
    losses = method(own, replace(own, taps=twice), batch_of())
    assert losses.parts["taught_box"].item() == pytest.approx(0, abs=1e-5)


def test_refusals():
    facts, plain = small().facts, FakeEncoder().facts
    for kind in (FeatureRichness, DenseAnswers):
        with pytest.raises(UserError, match="need a teacher; name one with --teacher"):
            kind(kind.Options(), facts, None)
        with pytest.raises(UserError, match="The teacher finds no objects"):
            kind(kind.Options(), facts, plain)
        other = replace(facts, img_size=(SIDE, SIDE * 2))
        with pytest.raises(UserError, match="in grids of 16 x 16, 8 x 8, 4 x 4 and the teacher of"):
            kind(kind.Options(), facts, other)
    with pytest.raises(UserError, match="knows 5 classes and the student learns 3"):
        DenseAnswers(DenseAnswersOptions(), facts, replace(facts, num_classes=5))
