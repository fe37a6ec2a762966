"""Runs before they begin: what fits is built, what does not is told, nothing is written."""

from dataclasses import replace

import pytest
import torch

from limbeck.engine.checkpoint import open_run
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.methods.options import RelationOptions
from limbeck.models.options import TeacherOptions
from limbeck.recipes.run.images import open_images
from limbeck.recipes.study.options import TuningOptions
from limbeck.recipes.train.rehearsal import in_section, open_existing, try_distillation, try_tuning
from tests.recipes.runs import distill_config, finetune_config

RANKS = Ranks(device=torch.device("cpu"))


def test_a_pre_training_is_built_and_shown_two_images(images, teacher, tmp_path):
    config = distill_config(images, tmp_path / "run", teacher)
    plan = try_distillation(config, open_images(config.data), RANKS)
    assert plan.teacher is not None and plan.student.facts.embed_dim == 24
    wrong = replace(config, relation=RelationOptions(teacher_block=9))
    with pytest.raises(UserError, match="block 9"):
        try_distillation(wrong, open_images(config.data), RANKS)
    assert not (tmp_path / "run").exists()


def test_a_fine_tuning_is_built_and_shown_two_images(images, student, classifier, tmp_path):
    source = TeacherOptions(source=str(classifier), precision="fp32")
    config = finetune_config(images, tmp_path / "run", student, head="distilled", teacher=source)
    plan = try_tuning(config, open_images(config.data), RANKS)
    assert plan.student.facts.has_dist_head and plan.teacher.num_classes == 3
    assert not (tmp_path / "run").exists()


def test_a_folder_with_another_run_is_told_before_anything_trains(tmp_path):
    own, other = ({"seed": 0}, {}), ({"seed": 1}, {})
    open_run(tmp_path / "a", *own).finish()
    absent = (tmp_path / "b", False, own)
    open_existing([(tmp_path / "a", False, own), absent])
    assert not (tmp_path / "b").exists()
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        open_existing([absent, (tmp_path / "a", False, other)])
    open_existing([(tmp_path / "a", True, other)])
    assert not (tmp_path / "a" / "finished.json").exists()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("set --train.global-batch-size 8.", "set --a-part.train.global-batch-size 8."),
        ("optim.eps, not of pretrain.optim", "a_part.optim.eps, not of pretrain.optim"),
        ("--global-pool, --global-pooling", "--a-part.global-pool, --global-pooling"),
        ("no file runs/train.tar of --data.root", "no file runs/train.tar of --data.root"),
        ("train.parquet has no labels", "train.parquet has no labels"),
        ("lower train.epochs.", "lower a_part.train.epochs."),
    ],
)
def test_options_are_told_by_their_section(said, expected):
    with pytest.raises(UserError) as raised, in_section("a_part", TuningOptions):
        raise UserError(said)
    assert str(raised.value) == expected
