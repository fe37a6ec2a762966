"""What a pre-training's plan is made of."""

from dataclasses import replace

import pytest
import torch

from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.methods.options import RelationOptions
from limbeck.models.options import TeacherOptions
from limbeck.recipes.run.images import open_images
from limbeck.recipes.targets.reading import open_networks
from limbeck.recipes.train.pretraining import plan_pretraining
from tests.recipes.runs import distill_config

RANKS = Ranks(device=torch.device("cpu"))


def plan_of(config):
    nets = open_networks(config, RANKS.device)
    return plan_pretraining(config, nets, open_images(config.data), RANKS), nets


def test_teacher_and_method_are_in_the_plan(images, teacher, tmp_path):
    config = distill_config(images, tmp_path, teacher, untrained_tail="zero")
    plan, nets = plan_of(config)
    assert plan.verb == "distill" and plan.untrained == "zero"
    assert plan.module.student is plan.student is nets.student
    assert plan.teacher == nets.live_teacher.facts
    assert plan.others["teacher"]["weights"] == plan.teacher.origin["weight_hash"]
    assert plan.others["targets"] is None
    assert set(plan.about()) == {"positions"}


def test_the_stream_has_the_views_of_the_method(images, teacher, tmp_path):
    alone = {"method": "moco-v3", "teacher": TeacherOptions(), "relation": RelationOptions()}
    config = distill_config(images, tmp_path, teacher, **alone)
    plan, nets = plan_of(config)
    smaller = replace(config, train=replace(config.train, global_batch_size=4))
    batch = next(plan.stream(smaller, SkippedLog(None, 36, 0.0), 0, 1))
    assert plan.teacher is None and batch.images.shape == (8, 3, 32, 32)
    assert len(batch.keys) == 4 and batch.num_views == 2


def test_what_does_not_fit_is_told_with_nothing_written(images, teacher, tmp_path):
    wrong = TeacherOptions(source=str(teacher), img_size=64, precision="fp32")
    with pytest.raises(UserError, match="one of 4 x 4"):
        plan_of(distill_config(images, tmp_path / "run", teacher, teacher=wrong))
    assert not (tmp_path / "run").exists()
