"""The runs that arms are made of: from sections of options, rehearsed, told from others."""

from dataclasses import replace

import pytest
import torch

from limbeck.engine.checkpoint import open_run
from limbeck.engine.distributed import Ranks
from limbeck.engine.options import OptimOptions
from limbeck.errors import UserError
from limbeck.methods.options import RelationOptions
from limbeck.models.options import TeacherOptions
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.run.images import open_images
from limbeck.recipes.study.options import SpecificOptions, TuningOptions
from limbeck.recipes.study.runs import (
    in_section,
    open_existing,
    rehearsed,
    start_run,
    values_of,
    without_layer_decay,
)
from limbeck.recipes.targets.reading import open_networks
from limbeck.recipes.train.pretraining import plan_pretraining
from limbeck.recipes.train.tuning import plan_tuning
from tests.recipes.runs import (
    STUDENT_SHAPE,
    distill_config,
    finetune_config,
    snapshot,
    weights_of,
)

RANKS = Ranks(device=torch.device("cpu"))


def pretraining(config):
    nets = open_networks(config, RANKS.device)
    return plan_pretraining(config, nets, open_images(config.data), RANKS)


def test_a_section_has_its_options_or_those_of_a_kind():
    section = SpecificOptions(drop_path_rate=0.3, head="single")
    values = values_of(section)
    assert (values["drop_path_rate"], values["head"]) == (0.3, "single")
    assert values["optim"] is section.optim
    assert values_of(section, TuningOptions) == values_of(
        TuningOptions(**{name: values[name] for name in values_of(TuningOptions())})
    )


def test_from_scratch_all_that_hangs_on_layer_decay_is_off():
    optim = OptimOptions(base_lr=0.5, layer_decay=0.75, head_lr_scale=0.7)
    assert without_layer_decay(optim) == OptimOptions(base_lr=0.5)


def test_every_seed_has_a_start_of_its_own_which_is_kept(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(folders):
        start_run(STUDENT_SHAPE, seed, folder).finish()
    assert weights_of(folders[0]) != weights_of(folders[1])
    before = [snapshot(folder) for folder in folders]
    for seed, folder in enumerate(folders):
        start_run(STUDENT_SHAPE, seed, folder).finish()
    assert [snapshot(folder) for folder in folders] == before


@pytest.mark.parametrize("change", [{"embed_dim": 12}, {"num_heads": 2}])  # the latter: no weights
def test_the_start_of_another_student_is_replaced(tmp_path, change):
    start_run(STUDENT_SHAPE, 0, tmp_path).finish()
    start_run(replace(STUDENT_SHAPE, **change), 0, tmp_path).finish()
    facts = load_encoder(tmp_path).facts
    expected = {"embed_dim": 24, "num_heads": 3} | change
    assert (facts.embed_dim, facts.num_heads[0]) == tuple(expected.values())


def test_a_pre_training_is_built_and_shown_two_images(images, teacher, tmp_path):
    config = distill_config(images, tmp_path / "run", teacher)
    plan = pretraining(config)
    (existing,) = rehearsed(plan, [replace(config, seed=1)], RANKS)
    assert existing[0] == config.out and existing[2][0]["seed"] == 1
    assert plan.teacher is not None and plan.student.facts.embed_dim == 24
    wrong = replace(config, relation=RelationOptions(teacher_block=9))
    with pytest.raises(UserError, match="block 9"):
        rehearsed(pretraining(wrong), [wrong], RANKS)
    assert not (tmp_path / "run").exists()


def test_a_fine_tuning_is_built_and_shown_two_images(images, student, classifier, tmp_path):
    source = TeacherOptions(source=str(classifier), precision="fp32")
    config = finetune_config(images, tmp_path / "run", student, head="distilled", teacher=source)
    plan = plan_tuning(config, open_images(config.data), RANKS)
    rehearsed(plan, [config], RANKS)
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
