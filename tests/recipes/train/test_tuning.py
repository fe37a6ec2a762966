"""What a fine-tuning trains, also of networks that are still to be trained themselves."""

import pytest
import torch

from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.methods.distiller import Distiller
from limbeck.models.options import TeacherOptions
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.run.images import open_images
from limbeck.recipes.train.chain import rebuilt
from limbeck.recipes.train.tuning import plan_tuning
from limbeck.tasks.classification import Classification
from tests.recipes.runs import finetune_config

RANKS = Ranks(device=torch.device("cpu"))
CLASSES = ["blue", "green", "red"]


def test_without_a_teacher_the_task_is_all_there_is(images, student, tmp_path):
    config = finetune_config(images, tmp_path, student)
    plan = plan_tuning(config, open_images(config.data), RANKS)
    assert isinstance(plan.module, Classification) and plan.module.encoder is plan.student
    assert plan.teacher is None


def test_networks_that_are_still_to_be_trained_stand_in(images, student, classifier, tmp_path):
    config = finetune_config(
        images,
        tmp_path,
        "not/there/yet",
        teacher=TeacherOptions(source="nor/this", precision="fp32"),
    )
    small, big = (load_encoder(each).facts.architecture for each in (student, classifier))
    opened = open_images(config.data)
    plan = plan_tuning(config, opened, RANKS, rebuilt(small), rebuilt(big, classes=CLASSES))
    assert isinstance(plan.module, Distiller)
    assert plan.student.facts.num_heads == load_encoder(student).facts.num_heads
    assert plan.teacher.num_classes == 3
    with pytest.raises(UserError, match="Class 0 of the teacher is 'green'"):
        other = rebuilt(big, classes=CLASSES[1:])
        plan_tuning(config, opened, RANKS, rebuilt(small), other)
