"""The arms of two stages as ordinary runs; nothing is built here."""

from pathlib import Path

import pytest

from limbeck.data.options import DataOptions
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.errors import UserError
from limbeck.methods.options import LogitOptions, RelationOptions
from limbeck.models.options import TeacherOptions
from limbeck.recipes.study.options import SpecificOptions, TwoStageConfig
from limbeck.recipes.study.runs import needs_teacher
from limbeck.recipes.study.stages import (
    ARMS,
    read_arms,
    sees_test_images,
    stage_one_config,
)

CONFIG = TwoStageConfig(
    out=Path("out"),
    teacher=TeacherOptions(source="mae.pth", img_size=64, precision="fp32", drop_path_rate=0.1),
    data=DataOptions(root="photos", holdout_ratio=0.3, label_fraction=0.1, label_seed=4),
    method="relation",
    relation=RelationOptions(teacher_block=5),
    optim=OptimOptions(base_lr=0.25),
    specific=SpecificOptions(
        head="distilled",
        head_init_std=0.5,
        logit=LogitOptions(weight=0.3),
        optim=OptimOptions(base_lr=0.125, layer_decay=0.75),
        train=TrainOptions(epochs=7),
    ),
)


def test_arms_are_named_once_and_exist():
    assert read_arms(("both", "generic")) == [ARMS["both"], ARMS["generic"]]
    for names, message in (((), "at least one"), (("genric",), "Did you mean 'generic'")):
        with pytest.raises(UserError, match=message):
            read_arms(names)


def test_stage_one_is_a_distillation_with_all_images():
    run = stage_one_config(CONFIG, 2)
    assert (run.out, run.seed) == (Path("out/seed_2/stage_one"), 2)
    assert (run.method, run.relation, run.optim) == ("relation", CONFIG.relation, CONFIG.optim)
    assert run.teacher == CONFIG.teacher
    assert (run.data.label_fraction, run.data.holdout_ratio) == (1, 0.3)


def test_other_images_of_stage_one_are_all_trained_on():
    config = TwoStageConfig(
        unlabelled="many", data=DataOptions(root="photos", eval_root="test", num_workers=3)
    )
    run = stage_one_config(config, 0)
    assert run.data == DataOptions(root="many", holdout_ratio=0, num_workers=3)


@pytest.mark.parametrize(
    ("unlabelled", "is_seen"),
    [
        ("all", True),
        ("all/photos/", True),
        ("all/photos/cats", True),
        ("all/others", False),
        ("all/photos2", False),
    ],
)
def test_images_around_the_held_out_ones_or_among_them_are_noticed(unlabelled, is_seen):
    data = DataOptions(root="all/photos")
    assert sees_test_images(TwoStageConfig(unlabelled=unlabelled, data=data)) == is_seen
    assert not sees_test_images(TwoStageConfig(data=data))


@pytest.mark.parametrize(("unlabelled", "is_seen"), [("all", True), ("all/photos", False)])
def test_none_of_the_root_is_held_out_where_other_images_are(unlabelled, is_seen):
    data = DataOptions(root="all/photos", eval_root="all/test")
    assert sees_test_images(TwoStageConfig(unlabelled=unlabelled, data=data)) == is_seen


def test_a_method_without_a_teacher_gets_none():
    config = TwoStageConfig(method="masked-pixel", teacher=CONFIG.teacher)
    assert not needs_teacher(config.method, config)
    assert stage_one_config(config, 0).teacher == TeacherOptions()
    assert needs_teacher(CONFIG.method, CONFIG)
    assert needs_teacher("limbeck.methods.feature:Feature", CONFIG)
