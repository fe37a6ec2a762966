"""What a fine-tuning trains, also of networks that are still to be trained themselves."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.distiller import Distiller
from limbeck.models.options import TeacherOptions
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.train.chain import rebuilt
from limbeck.recipes.train.finetune_networks import build_tuning
from limbeck.tasks.classification import Classification
from tests.recipes.runs import finetune_config

CPU = torch.device("cpu")
CLASSES = ["blue", "green", "red"]


def test_without_a_teacher_the_task_is_all_there_is(images, student, tmp_path):
    nets = build_tuning(finetune_config(images, tmp_path, student), CLASSES, CPU)
    assert nets.module is nets.task and isinstance(nets.task, Classification)
    assert nets.teacher is None


def test_networks_that_are_still_to_be_trained_stand_in(images, student, classifier, tmp_path):
    config = finetune_config(
        images,
        tmp_path,
        "not/there/yet",
        teacher=TeacherOptions(source="nor/this", precision="fp32"),
    )
    small, big = (load_encoder(each).facts.architecture for each in (student, classifier))
    nets = build_tuning(config, CLASSES, CPU, rebuilt(small), rebuilt(big, classes=CLASSES))
    assert isinstance(nets.module, Distiller)
    assert nets.student.facts.num_heads == load_encoder(student).facts.num_heads
    assert nets.teacher.num_classes == 3
    with pytest.raises(UserError, match="Class 0 of the teacher is 'green'"):
        build_tuning(config, CLASSES, CPU, rebuilt(small), rebuilt(big, classes=CLASSES[1:]))
