"""What a segmentation's plan is made of."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks
from limbeck.engine.optim import param_groups
from limbeck.engine.options import POSITIONS_AND_TOKENS
from limbeck.models.build import build_student
from limbeck.models.dense.build import build_segmenter
from limbeck.models.finished import save_student
from limbeck.models.options import SegmenterOptions, StudentOptions, TeacherOptions
from limbeck.models.origins.load import load_encoder
from limbeck.ops.dense import channel_wise_loss
from limbeck.recipes.run.scenes import open_scene_images
from limbeck.recipes.train.chain import rebuilt
from limbeck.recipes.train.options import SegmentConfig
from limbeck.recipes.train.segmentation import plan_segmentation
from limbeck.records import Tap
from limbeck.tasks.segmentation import Segmentation
from tests.recipes.scenes import NAMES, SHAPE, segment_config


def segmenter_like(folder, name, **options):
    encoder = build_student(StudentOptions(name=name), seed=3)
    teacher = build_segmenter(encoder, 2, SegmenterOptions(**options), 4)
    save_student(teacher, folder, {"classes": list(NAMES)})
    return str(folder)


RANKS, LOGITS = Ranks(device=torch.device("cpu")), Tap("logits")
TEACHERS = {
    "wider": ("vit_tiny:img_size=32:patch_size=8:embed_dim=48:depth=2:num_heads=4", {}),
    "deeper": ("vit_tiny:img_size=32:patch_size=8:embed_dim=24:depth=5:num_heads=3", {}),
    "another head": (SHAPE, {"head": "upernet", "width": 16}),
    "other patches": ("vit_tiny:img_size=32:patch_size=16:embed_dim=24:depth=2:num_heads=3", {}),
    "larger images": ("vit_tiny:img_size=64:patch_size=8:embed_dim=24:depth=2:num_heads=3", {}),
    "stages": ("tiny_vit_5m:img_size=64:embed_dims=12-12-18-30:depths=1-1-1-1:head_dim=6", {}),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_of_another_shape_sees_the_student_s_images(scenes, tmp_path, name):
    """And its maps are compared at the student's size."""
    shape, options = TEACHERS[name]
    source = segmenter_like(tmp_path / "teacher", shape, **options)
    teacher = TeacherOptions(source=source, precision="fp32")
    config = segment_config(scenes, tmp_path / "run", teacher=teacher)
    images = open_scene_images(config.data)
    plan = plan_segmentation(config, images, RANKS)
    module = plan.module.eval()  # without dropout
    assert module.teacher.facts.img_size == (32, 32)
    batch = next(plan.stream(config, SkippedLog(None, 24, 0.0), 0, 1))
    found = module(batch).parts["channel_wise"]
    alone = load_encoder(source, img_size=32).eval()
    own, target = (net(batch.images, None, (LOGITS,)).taps[LOGITS] for net in (plan.student, alone))
    assert own.shape[-2:] == (16, 16)
    wide = F.interpolate(target, (16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, 3 * channel_wise_loss(own, wide))


def test_positions_are_decayed_where_that_is_asked_for(scenes, tmp_path):
    for is_decayed in (False, True):
        config = segment_config(scenes, tmp_path, decay_positions=is_decayed)
        names = (*POSITIONS_AND_TOKENS, "gamma_1")
        config = replace(config, optim=replace(SegmentConfig().optim, no_decay_names=names))
        plan = plan_segmentation(config, open_scene_images(config.data), RANKS)
        assert "gamma_1" in plan.config.optim.no_decay_names
        student = plan.student
        groups = param_groups(student, plan.config.optim, student.layer_id, student.facts.depth)
        decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        for each in ("pos_embed", "cls_token"):
            value = getattr(student.backbone.model, each)
            assert decays[id(value)] == (0.05 if is_decayed else 0.0)


def test_drop_path_rises_to_the_last_block(scenes, tmp_path):
    config = segment_config(scenes, tmp_path, drop_path_rate=0.1)
    student = plan_segmentation(config, open_scene_images(config.data), RANKS).student
    first, last = student.backbone.model.blocks
    assert isinstance(first.drop_path1, nn.Identity) and last.drop_path1.drop_prob == 0.1


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
