"""Every preset's networks and method fit each other; plain ViTs are built narrow, to be quick."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from limbeck.config import PRESETS_DIR, from_plain, preset_names, read_preset
from limbeck.data.options import DataOptions
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes import compare, distill, finetune, two_stage
from limbeck.recipes.arms import arm_config, table_needs_teacher
from limbeck.recipes.chain import split_chain
from limbeck.recipes.networks import build_networks, method_class, method_options
from limbeck.recipes.stages import stage_one_config

DATA = DataOptions(root=str(PRESETS_DIR))  # any folder that is there


@cache
def teacher_of(name, num_classes):
    """A stand-in of the student's family: wide ones of timm can't be downloaded here."""
    if not name.startswith("vit"):
        return build_student(StudentOptions(name=name), num_classes=num_classes, seed=1)
    shape = StudentOptions(name="vit_base", embed_dim=48, num_heads=12, depth=24)
    return build_student(shape, num_classes=num_classes, seed=1)


def networks_of(config):
    options = method_options(config, method_class(config.method))
    student = config.student
    if student.name.startswith("vit"):
        student = replace(student, embed_dim=48)
    teacher = TeacherOptions(source="timm:vit_base_patch16_224") if options.needs_teacher else None
    config = replace(config, data=DATA, student=student, teacher=teacher or TeacherOptions())
    distill.check(config)
    num_classes = 5 if options.trains_classifier else 0
    nets = build_networks(
        config, torch.device("cpu"), lambda *_, **__: teacher_of(student.name, num_classes)
    )
    assert nets.student.facts.num_classes == num_classes
    return nets


@pytest.mark.parametrize("name", preset_names("distill"))
def test_pre_training(name):
    config = from_plain(distill.DistillConfig, read_preset(name, "distill"), name)
    networks = networks_of(split_chain(config)[0])
    assert networks.method.student_taps
    assert (networks.teacher is not None) == networks.method_options.needs_teacher


@pytest.mark.parametrize("name", preset_names("finetune"))
def test_fine_tuning(name):
    config = from_plain(finetune.FinetuneConfig, read_preset(name, "finetune"), name)
    needs_weights = config.keep_head
    student = config.student or ("timm:tiny_vit_21m_224" if needs_weights else "vit_tiny")
    needs_teacher = config.head is not None  # those with a head for it
    source = "timm:vit_base_patch16_224" if needs_teacher else None
    config = replace(config, data=DATA, student=student, teacher=TeacherOptions(source=source))
    finetune.check(config)


@pytest.mark.parametrize("name", preset_names("two-stage"))
def test_two_stages(name):
    config = from_plain(two_stage.TwoStageConfig, read_preset(name, "two-stage"), name)
    teacher = TeacherOptions(source="timm:vit_base_patch16_224.mae")
    config = replace(config, data=replace(config.data, root=DATA.root), teacher=teacher)
    assert two_stage.check(config)
    assert networks_of(stage_one_config(config, 0)).method.student_taps


def test_the_contenders_are_eight_and_the_untrained_one():
    (name,) = preset_names("compare")
    config = from_plain(compare.CompareConfig, read_preset(name, "compare"), name)
    config = replace(config, data=DATA, teacher=TeacherOptions(source="timm:vit_base_patch16_224"))
    arms = compare.check(config)
    built = {
        arm.name: networks_of(arm_config(config, arm, 0, table_needs_teacher(arm)))
        for arm in arms
        if arm.method
    }
    assert {arm.name for arm in arms} - built.keys() == {"untrained", "scratch"}
    kinds = {name: type(networks.method).__name__ for name, networks in built.items()}
    assert kinds == {
        "mae": "MaskedPixel",
        "simmim": "SimMim",
        "moco-v3": "MocoV3",
        "dino": "Dino",
        "d-mae": "AttentionMap",
        "d2-mae": "AttentionMap",
        "tinymim": "Relation",
    }
    coupled, decoupled = (built[name].method for name in ("d-mae", "d2-mae"))
    assert coupled.extra_block is None and coupled.reconstruction.tap.kind == "output"
    assert decoupled.extra_block is not None and decoupled.reconstruction.tap.block == 8
