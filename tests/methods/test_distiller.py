"""The distiller: the teacher's precision, size and grid; what each side sees."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import UserError
from limbeck.methods.distiller import Distiller
from limbeck.methods.method import Method
from limbeck.methods.teacher import Teacher
from limbeck.models.build import build_student
from limbeck.models.encoder import Encoder
from limbeck.models.options import StudentOptions
from limbeck.ops.dense import channel_wise_loss
from limbeck.records import Batch, Losses, Tap
from limbeck.tasks.classification import Classification
from tests.fakes import FakeEncoder

CPU = torch.device("cpu")


class Recorder(Method):
    """Keeps what it was handed."""

    student_taps = (Tap("queries"),)
    teacher_taps = (Tap("tokens"),)

    def forward(self, student, teacher, batch):
        self.seen = (student, teacher, batch)
        return Losses(student.taps[self.student_taps[0]].sum())


def batch(size=8):
    return Batch(
        torch.rand(2, 3, size, size),
        torch.rand(2, 3, size, size),
        None,
        ("a", "b"),
        torch.arange(2),
    )


def test_each_side_sees_its_own_view():
    student, teacher = FakeEncoder(), FakeEncoder(seed=1)
    distiller = Distiller(student, Recorder(), Teacher(teacher, CPU, "fp32"))
    one = batch()
    distiller(one)
    seen_student, seen_teacher, _ = distiller.method.seen
    expected = student(one.images, None, Recorder.student_taps)
    torch.testing.assert_close(seen_student.taps, expected.taps)
    torch.testing.assert_close(
        seen_teacher.taps, teacher(one.teacher_images, None, Recorder.teacher_taps).taps
    )
    assert not seen_teacher.taps[Tap("tokens")].requires_grad


def test_patch_grids_that_differ_are_refused():
    class Wide(FakeEncoder):
        def __init__(self):
            super().__init__()
            self._facts["img_size"] = (16, 16)

    with pytest.raises(UserError, match="grid"):
        Distiller(FakeEncoder(), Recorder(), Teacher(Wide(), CPU))


@pytest.mark.parametrize(("own", "task"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1.0, -1.0)])
def test_a_method_beside_a_task_silences_neither(own, task):
    student, method = FakeEncoder(), Recorder()
    method.own_weight, method.task_weight = own, task
    with pytest.raises(UserError, match="silences the labels or the teacher; state weights above"):
        Distiller(student, method, Teacher(FakeEncoder(), CPU), Classification(student))


def test_the_student_is_saved_once():
    student, method = FakeEncoder(), Recorder()
    distiller = Distiller(student, method, None, Classification(student))
    assert set(distiller.state_dict()) == {f"student.{name}" for name in student.state_dict()}


def test_a_method_without_teacher_gets_none():
    distiller = Distiller(FakeEncoder(), Recorder(), None)
    distiller(batch())
    assert distiller.method.seen[1] is None


# --- A dense task, as segmentation will be: nothing of the distiller knows of classes or logits ---

DEEP, DENSE = Tap("tokens", -1), Tap("logits")


class DenseEncoder(Encoder):
    """A real ViT and a head for every patch: its logits are a map (B, C, gh, gw)."""

    def __init__(self, embed_dim, seed):
        super().__init__()
        shape = StudentOptions(
            name="vit_tiny", img_size=32, patch_size=8, embed_dim=embed_dim, depth=2, num_heads=2
        )
        self.backbone = build_student(shape, seed=seed)
        self.head = torch.nn.Conv2d(embed_dim, 3, 1)
        self.facts = replace(self.backbone.facts, num_classes=3)
        self.num_calls = 0

    def forward(self, images, ids_keep=None, taps=(), mask_token=None):
        self.num_calls += 1
        said = self.backbone(images, ids_keep, (DEEP,), mask_token)
        maps = self.head(as_map(said))
        return replace(said, taps={tap: maps if tap == DENSE else said.taps[tap] for tap in taps})

    def offered_taps(self):
        return ("tokens", "logits")

    def layer_id(self, parameter_name):
        owner, _, own_name = parameter_name.partition(".")
        return self.facts.depth + 1 if owner == "head" else self.backbone.layer_id(own_name)

    def set_num_heads(self, block, num_heads):
        self.backbone.set_num_heads(block, num_heads)


def as_map(said):
    """The patches' tokens after the last block, (B, D, gh, gw)."""
    return said.taps[DEEP][:, said.num_prefix_tokens :].mT.unflatten(2, said.grid)


class Segmentation:
    """A task's loss: cross entropy of every patch; 255 is no class."""

    taps = (DENSE,)

    def loss(self, features, batch):
        loss = F.cross_entropy(features.taps[DENSE], batch.labels, ignore_index=255)
        return Losses(total=loss, parts={"segment": loss.detach()})


class DenseMethod(Method):
    """Channel-wise distillation of class maps, and feature maps through a layer of its own.

    Softmax over places, cross entropy, mean over images and channels, as in G2SD's segmentation
    (arXiv 2302.14771). The features' weight rises over two steps.
    """

    own_weight = 0.25
    student_taps = teacher_taps = (DENSE, DEEP)

    def __init__(self, student, teacher):
        super().__init__()
        self.adapter = torch.nn.Conv2d(student.embed_dim, teacher.embed_dim, 3, padding=1)
        self.register_buffer("ramp", torch.tensor(0.0))

    def after_step(self, step, total_steps):
        self.ramp.fill_(min(1.0, step / 2))

    def forward(self, student, teacher, batch):
        maps = channel_wise_loss(student.taps[DENSE], teacher.taps[DENSE])
        error = self.ramp * (self.adapter(as_map(student)) - as_map(teacher)).square().mean()
        return Losses(maps + error, {"maps": maps.detach(), "features": error.detach()})


def test_a_dense_task_and_its_method_fit_the_seam():
    """Maps of classes and features, labels by place, a warm-up: the same distiller."""
    student, teacher = DenseEncoder(16, 0), DenseEncoder(24, 1)
    method = DenseMethod(student.facts, teacher.facts)
    distiller = Distiller(student, method, Teacher(teacher, CPU, "fp32"), Segmentation())
    labels = torch.randint(3, (2, 4, 4))
    labels[:, 0] = 255
    images = torch.rand(2, 3, 32, 32)
    one = Batch(images, images, labels, ("a", "b"), torch.arange(2))
    assert distiller(one).parts["features"] == 0
    distiller.after_step(1, 10)
    student.num_calls = teacher.num_calls = 0
    losses = distiller(one)
    assert (student.num_calls, teacher.num_calls) == (1, 1)
    own = student(images, None, (DENSE, DEEP))
    target = teacher(images, None, (DENSE, DEEP))
    kept = labels != 255
    expected = F.cross_entropy(own.taps[DENSE].movedim(1, -1)[kept], labels[kept])
    for b in range(2):
        for c in range(3):
            s, t = own.taps[DENSE][b, c].flatten(), target.taps[DENSE][b, c].flatten()
            expected = expected - 0.25 * (t.softmax(0) * s.log_softmax(0)).sum() / 6
    error = (method.adapter(as_map(own)) - as_map(target)).square().mean()
    torch.testing.assert_close(losses.total, expected + 0.25 * 0.5 * error)
    assert set(losses.parts) == {"segment", "maps", "features"}
    torch.testing.assert_close(sum(losses.parts.values()), losses.total.detach())
    losses.total.backward()
    untrained = {name for name, p in distiller.named_parameters() if p.grad is None}
    # The fixed table of positions, and the final norm, which no tap reads.
    ends = ("pos_embed", "norm.weight", "norm.bias")
    assert untrained == {f"student.backbone.model.{name}" for name in ends}
    assert all(parameter.grad is None for parameter in teacher.parameters())
    names = {f"student.{name}" for name in student.state_dict()}
    own_names = {"method.adapter.weight", "method.adapter.bias", "method.ramp"}
    assert set(distiller.state_dict()) == names | own_names


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda total: total, "returned a Tensor, not limbeck.Losses"),
        (lambda total: None, "returned a NoneType, not limbeck.Losses"),
        (
            lambda total: Losses(total.expand(2)),
            r"tensor of shape \(2,\) and torch.float32, not one",
        ),
        (lambda total: Losses(total.long()), "torch.int64, not one number"),
        (lambda total: Losses(total.detach()), "has no gradient, so nothing would be learnt"),
    ],
)
def test_losses_that_are_none_are_told_as_the_methods(returned, words):
    class Nonsense(Recorder):
        teacher_taps = ()

        def forward(self, student, teacher, batch):
            return returned(super().forward(student, teacher, batch).total)

    student = FakeEncoder()
    with pytest.raises(UserError, match=f"Nonsense .*{words}"):
        Distiller(student, Nonsense(), None)(batch())
