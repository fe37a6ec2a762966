"""The arms of the experiments are methods that can be built."""

import pytest

from experiments.cifar10_ablation.run import ARMS as ABLATION
from experiments.cifar10_mae_lite.run import ARMS as MAE_LITE
from experiments.cifar10_tinymim.run import ARMS as TINYMIM
from limbeck.methods import PerMethodOptions
from limbeck.models.options import TeacherOptions
from limbeck.recipes.networks import method_class
from tests.fakes import FakeEncoder

ARMS = {name: arm for name, (_, arm) in ABLATION.items()} | TINYMIM | MAE_LITE


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_builds_its_method(name):
    arm = ARMS[name]
    if arm.method is None:
        assert arm.options is None and not arm.teacher
        return
    student, teacher = FakeEncoder(depth=6), FakeEncoder(depth=8, seed=1)
    kind = method_class(arm.method)
    options = arm.options or getattr(PerMethodOptions(), arm.method.replace("-", "_"))
    method = kind(options, student.facts, teacher.facts if options.needs_teacher else None)
    assert bool(method.teacher_taps) is options.needs_teacher
    TeacherOptions(source="timm:vit_tiny", **arm.teacher)
