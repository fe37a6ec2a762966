"""What a segmentation's plan is made of."""

from dataclasses import replace

import torch

from limbeck.engine.distributed import Ranks
from limbeck.models.options import TeacherOptions
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.run.scenes import open_scene_images
from limbeck.recipes.train.chain import rebuilt
from limbeck.recipes.train.segmentation import plan_segmentation
from limbeck.tasks.segmentation import Segmentation
from tests.recipes.scenes import NAMES, SHAPE, segment_config

RANKS = Ranks(device=torch.device("cpu"))


def test_task_and_crops_are_in_the_plan(scenes, tmp_path):
    config = segment_config(scenes, tmp_path, img_size=48, mean="all", class_weights=(1.0, 3.0))
    plan = plan_segmentation(config, open_scene_images(config.data), RANKS)
    assert isinstance(plan.module, Segmentation) and plan.module.encoder is plan.student
    assert plan.module.mean == "all" and plan.module.class_weights.tolist() == [1.0, 3.0]
    assert plan.student.facts.img_size == (48, 48) and plan.untrained is None
    ids = {
        name.split(".")[0]: plan.student.layer_id(name)
        for name, _ in plan.student.named_parameters()
    }
    assert ids["head"] == plan.student.facts.depth + 1


def test_a_head_count_is_taken_back(scenes, student, tmp_path):
    assert load_encoder(student).facts.num_heads == (3, 4)
    config = segment_config(scenes, tmp_path, student=str(student), num_heads=3)
    plan = plan_segmentation(config, open_scene_images(config.data), RANKS)
    assert plan.student.facts.num_heads == (3, 3)


def test_the_teacher_sees_what_the_student_sees(scenes, segmenter, tmp_path):
    teacher = TeacherOptions(source=str(segmenter), precision="fp32")
    shape = SHAPE.replace("patch_size=8", "patch_size=16")
    config = segment_config(scenes, tmp_path, student=shape, img_size=64, teacher=teacher)
    opened = open_scene_images(config.data)
    assert plan_segmentation(config, opened, RANKS).teacher.img_size == (64, 64)
    other = SHAPE.replace("img_size=32:patch_size=8", "img_size=60:patch_size=20")
    whole = replace(config, student=other, img_size=None)
    assert plan_segmentation(whole, opened, RANKS).teacher.img_size == (64, 64)
    own = replace(config, teacher=replace(teacher, img_size=32))
    assert plan_segmentation(own, opened, RANKS).teacher.img_size == (32, 32)
    architecture = load_encoder(segmenter).facts.architecture
    planned = rebuilt(architecture, classes=list(NAMES))  # one that is still to be trained
    plan = plan_segmentation(config, opened, RANKS, load_teacher=planned)
    assert plan.teacher.img_size == (64, 64) and plan.teacher.has_maps
