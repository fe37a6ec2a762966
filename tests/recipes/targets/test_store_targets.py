"""``limbeck store-targets``: its config, and what it says at the end."""

from dataclasses import fields

import pytest

from limbeck.data.options import DataOptions, StoreOptions
from limbeck.errors import UserError
from limbeck.methods.options import MocoV3Options
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.run.options import DistillConfig
from limbeck.recipes.targets.store_targets import (
    Stored,
    StoreTargetsConfig,
    as_distill,
    check,
    report,
    store_targets,
)
from tests.recipes import own_teachers
from tests.recipes.runs import STUDENT_SHAPE


def config_of(**changes):
    values = {
        "data": DataOptions(root=".", num_workers=0),
        "teacher": TeacherOptions(source="timm:vit_tiny_patch16_224.augreg_in21k"),
    }
    return StoreTargetsConfig(**values | changes)


def test_the_training_it_is_for_has_the_same_views_and_networks():
    config = config_of(seed=3, student=STUDENT_SHAPE, device="cpu")
    training = as_distill(config)
    shared = {f.name for f in fields(config)} & {f.name for f in fields(training)} - {"out"}
    assert {"seed", "student", "teacher", "data", "crop", "sparse_logit", "method"} <= shared
    assert all(getattr(training, name) == getattr(config, name) for name in shared)
    assert training.out == DistillConfig().out
    check(config)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"teacher": TeacherOptions()}, "needs a teacher"),
        ({"method": "sparse-logits"}, "Did you mean 'sparse-logit'"),
        ({"method": "dino"}, "has no teacher"),
        ({"moco_v3": MocoV3Options(momentum=0.5)}, "no effect with --method sparse-logit"),
        ({"data": DataOptions(root="nowhere")}, "nowhere does not exist"),
        ({"student": StudentOptions(name="vit_tin")}, "vit_tin"),
        ({"max_distance": 0.5}, "no effect without --check"),
        ({"check": True, "resume": True}, "--resume has no effect with --check"),
    ],
)
def test_what_is_wrong_is_told_before_torch(changes, said):
    with pytest.raises(UserError, match=said):
        check(config_of(**changes))


def test_options_of_another_kind_are_refused(images, teacher, classifier, tmp_path):
    shared = {
        "data": DataOptions(root=str(images), num_workers=0),
        "student": STUDENT_SHAPE,
        "device": "cpu",
        "out": str(tmp_path / "store"),
    }
    of_labels = config_of(
        teacher=TeacherOptions(source=str(classifier)),
        store=StoreOptions(token_dtype="bf16"),
        **shared,
    )
    with pytest.raises(UserError, match="store.token_dtype has no effect for SparseLogit"):
        store_targets(of_labels)
    of_tokens = config_of(
        teacher=TeacherOptions(source=str(teacher)),
        method="relation",
        store=StoreOptions(top_k=5),
        **shared,
    )
    with pytest.raises(UserError, match="store.top_k has no effect for Relation"):
        store_targets(of_tokens)
    assert not (tmp_path / "store").exists()


def test_a_teacher_without_classifier_is_sent_to_fine_tuning(images, teacher, tmp_path):
    config = config_of(
        data=DataOptions(root=str(images), num_workers=0),
        teacher=TeacherOptions(source=str(teacher)),
        student=STUDENT_SHAPE,
        out=str(tmp_path / "store"),
    )
    with pytest.raises(UserError, match="classifier"):
        store_targets(config)
    assert not (tmp_path / "store").exists()


def test_a_teacher_of_ones_own_is_told_by_its_weights(images, tmp_path):
    """Its class states no hash, and its name no weights."""
    config = config_of(
        data=DataOptions(root=str(images), num_workers=0),
        teacher=TeacherOptions(source="tests.recipes.own_teachers:seeded", precision="fp32"),
        student=STUDENT_SHAPE,
        device="cpu",
        out=str(tmp_path / "store"),
    )
    assert store_targets(config).num_new == 48
    assert store_targets(config).num_new == 0
    own_teachers.SEED += 1
    try:
        with pytest.raises(UserError, match=r"holds another store: teacher\.weights is "):
            store_targets(config)
    finally:
        own_teachers.SEED -= 1


def test_the_last_words_are_the_next_command():
    said = report(Stored("my store", "feature", 12, 5, {"bad.png": "cut off"}))
    assert "The targets of 12 images are in my store (5 of them new)." in said
    assert "1 images could not be read" in said
    assert "limbeck distill --method feature --targets 'my store'" in said
