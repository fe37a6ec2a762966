"""Every arm of every method is trained from one of the kinds of stored target, or says why not."""

import json

import pytest
import torch

from limbeck.data.options import StoreOptions
from limbeck.errors import UserError
from limbeck.methods.logit import Logit
from limbeck.methods.options import LogitOptions
from limbeck.methods.targets import TARGETS, Targets, plan_targets, targets_class
from limbeck.methods.teacher import Teacher
from limbeck.models.build import build_student
from limbeck.models.mae import MaeDecoder
from limbeck.models.masked_autoencoder import MaskedAutoencoder
from limbeck.models.options import StudentOptions
from tests.methods.arms import ARMS

CPU = torch.device("cpu")
SHAPE = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}

NO_TEACHER = "has no teacher"
NOT_STORED = {
    **dict.fromkeys(("masked-pixel", "moco-v3", "dino", "simmim", "simmim-block"), NO_TEACHER),
    "attention-map-tokens": "reads blocks 0, 1 of the teacher",
    **dict.fromkeys(
        ("decoder-feature-smooth-l1", "decoder-feature-mse", "decoder-feature-cosine"),
        "reads both the teacher's decoder and its encoder",
    ),
}
"""The arms that no kind of target serves, and what is said of them."""


def build(kind, options):
    """The method and its live teacher, both networks a tiny ViT with a classifier.

    The teacher has a decoder of four blocks where the method reads one.
    """
    student, teacher = (
        build_student(StudentOptions(name="vit_tiny", **SHAPE), num_classes=3, seed=seed)
        for seed in (0, 1)
    )
    if getattr(options, "reads_decoder", False):
        teacher = MaskedAutoencoder(teacher, MaeDecoder(16, (2, 2), 4, 16, 4, 2, True))
    needs_teacher = getattr(options, "needs_teacher", True)
    method = kind(options, student.facts, teacher.facts if needs_teacher else None)
    return method, Teacher(teacher.eval(), CPU, "fp32")


@pytest.mark.parametrize("name", TARGETS)
def test_each_kind_has_its_name(name):
    assert issubclass(targets_class(name), Targets) and targets_class(name).kind == name


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_served_or_told_why_not(arm):
    kind, values = ARMS[arm]
    method, teacher = build(kind, kind.Options(**values))
    if arm in NOT_STORED:
        with pytest.raises(UserError, match=NOT_STORED[arm]):
            plan_targets(StoreOptions(), method, teacher)
        return
    targets = plan_targets(StoreOptions(), method, teacher)
    assert targets.kind == ("probs" if method.takes_soft_labels else "tokens")
    targets.check(method)
    again = targets_class(targets.kind).from_store(
        json.loads(json.dumps(targets.params)), teacher.facts, targets.weights
    )
    assert (again.params, again.arrays) == (targets.params, targets.arrays)
    again.check(method)


def test_logits_are_not_told_by_tokens():
    method, teacher = build(Logit, LogitOptions())
    with pytest.raises(UserError, match="store class probabilities instead"):
        plan_targets(StoreOptions(), method, teacher)
