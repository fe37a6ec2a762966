"""The arms of the experiments are methods that can be built."""

import pytest

from experiments.bccd import run as bccd
from experiments.camvid import run as camvid
from experiments.cifar10_ablation.run import ARMS as ABLATION
from experiments.cifar10_g2sd.run import ALONE, BUDGET
from experiments.cifar10_g2sd.run import ARMS as G2SD
from experiments.cifar10_mae_lite.run import ARMS as MAE_LITE
from experiments.cifar10_tinymim.run import ARMS as TINYMIM
from experiments.cifar10_tinyvit import run as tinyvit
from limbeck.methods import PerBoxMethodOptions, PerMethodOptions
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions, TeacherOptions, choose_pool
from limbeck.recipes.run.networks import method_class
from tests.fakes import FakeEncoder

ARMS = {name: arm for name, (_, arm) in ABLATION.items()} | TINYMIM | MAE_LITE | G2SD


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_builds_its_method(name):
    arm = ARMS[name]
    if arm.method is None:
        assert arm.options is None and not arm.teacher
        return
    student, teacher = FakeEncoder(depth=6), FakeEncoder(depth=8, seed=1, decoder_depth=8)
    kind = method_class(arm.method)
    options = arm.options or getattr(PerMethodOptions(), arm.method.replace("-", "_"))
    method = kind(options, student.facts, teacher.facts if options.needs_teacher else None)
    assert bool(method.teacher_taps) is options.needs_teacher
    TeacherOptions(source="timm:vit_tiny", **arm.teacher)


def test_one_stage_sees_as_many_images_as_two():
    assert ALONE * BUDGET.finetune == BUDGET.pretrain + BUDGET.finetune
    for name, arm in G2SD.items():
        assert arm.more == (1 if arm.method or name.endswith("a third") else ALONE)
        assert arm.is_taught == (arm.head == "distilled-last")
        assert choose_pool(arm.head or "single", arm.global_pool) == "token"


def test_soft_labels_by_classes_and_views():
    stores = [arm.store for arm in tinyvit.ARMS.values() if arm.store]
    assert stores == [(k, e) for e in (1, 5, 20) for k in (1, 3, 10)]
    assert max(e for _, e in stores) == tinyvit.EPOCHS  # no view is seen twice
    facts = build_student(StudentOptions(name=tinyvit.STUDENT), seed=0).facts
    assert facts.img_size == (32, 32) and facts.depth == 6


def test_stages_of_a_segmenter_see_as_many_pixels():
    for backbone in camvid.BACKBONES.values():
        first = round(camvid.UNLABELLED * (128 / backbone.img_size) ** 2) * backbone.img_size**2
        alone, after = camvid.ALONE * camvid.SIDE**2, camvid.LABELLED * camvid.SIDE**2
        assert abs(first + after - alone) < 0.001 * alone
        facts = build_student(StudentOptions(name=backbone.name), seed=0).facts
        assert facts.embed_dim in (128, 160)
    assert set(PerMethodOptions.__dataclass_fields__) >= {"masked_pixel", "simmim", "feature"}


def test_two_stages_of_the_light_detector_see_as_many_pixels_as_one():
    light = bccd.KINDS["light"]
    spared = (light.alone - light.labelled) * light.side**2
    unlabelled = bccd.UNLABELLED * bccd.FIRST_SIDE**2
    assert unlabelled == pytest.approx(spared, rel=1e-3)


@pytest.mark.parametrize("name", bccd.KINDS)
def test_every_kind_of_detector_has_a_method_for_its_head(name):
    kind = bccd.KINDS[name]
    own = getattr(PerBoxMethodOptions(), kind.method.replace("-", "_"))
    assert kind.detector.head in own.heads
