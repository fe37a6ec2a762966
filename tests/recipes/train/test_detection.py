"""What a detection's plan is made of."""

from dataclasses import replace

import pytest
import torch

from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks
from limbeck.engine.optim import param_groups
from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.dense.build_detector import build_detector
from limbeck.models.finished import save_student
from limbeck.models.options import DetectorOptions, StudentOptions, TeacherOptions
from limbeck.recipes.run.networks import layer_of
from limbeck.recipes.run.objects import open_object_images
from limbeck.recipes.train.detection import plan_detection
from tests.recipes.objects import NAMES, SHAPE, detect_config


def plan_of(config):
    return plan_detection(config, open_object_images(config.data), Ranks())


def teacher_at(folder, classes=NAMES, shape=SHAPE):
    encoder = build_student(StudentOptions(name=shape), seed=3)
    teacher = build_detector(encoder, len(classes), DetectorOptions(width=32), 4)
    save_student(teacher, folder, {"classes": list(classes)})
    return TeacherOptions(source=str(folder), precision="fp32")


def test_teacher_and_task_learn_from_the_same_images(objects, tmp_path):
    config = detect_config(objects, tmp_path, teacher=teacher_at(tmp_path / "t"))
    plan = plan_of(config)
    batch = next(plan.stream(config, SkippedLog(None, 24, 0.0), 0, 1))
    losses = plan.module(batch)
    assert {"class", "box", "taught_class", "taught_box"} <= set(losses.parts)
    assert plan.teacher.num_classes == 2 and not plan.module.teacher.encoder.training


def test_a_teacher_of_other_classes_is_refused(objects, tmp_path):
    config = detect_config(
        objects, tmp_path, teacher=teacher_at(tmp_path / "t", ("bright", "blue"))
    )
    with pytest.raises(UserError, match="class"):
        plan_of(config)
    config = replace(config, teacher=teacher_at(tmp_path / "u", shape=SHAPE.replace("48", "64")))
    with pytest.raises(UserError, match="trained at the --img-size"):
        plan_of(config)


def test_layer_decay_is_by_depth_and_heads_have_all(objects, tmp_path):
    config = detect_config(objects, tmp_path)
    optim = replace(config.optim, layer_decay=0.5)
    plan = plan_of(replace(config, optim=optim))
    student = plan.student
    groups = param_groups(
        plan.module, optim, lambda name: layer_of(student, name), student.facts.depth
    )
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(student.backbone.model.patch_embed.proj.weight)] == 0.5**3
    assert scale[id(student.backbone.blocks[1].mlp.fc1.weight)] == 0.5
    assert scale[id(student.one[0].classes.weight)] == 1
    assert torch.isfinite(student.pyramid.lateral[0].conv.weight).all()


def test_published_weights_of_classes(objects, tmp_path):
    plan = plan_of(detect_config(objects, tmp_path, class_weights=(1.0, 4.0)))
    assert plan.student.class_weights.tolist() == [1, 4]
