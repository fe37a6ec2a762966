"""Checks without torch: each mistake has its sentence, and what is right passes."""

import importlib.util
from dataclasses import replace

import pytest

from limbeck.data.options import DataOptions, MixOptions, TargetsOptions
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.errors import UserError
from limbeck.methods import PerMethodOptions
from limbeck.methods.options import (
    LogitOptions,
    MaskedPixelOptions,
    MethodOptions,
    RelationOptions,
)
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.run import checks
from limbeck.recipes.run.options import FinetuneConfig


def message_of(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_choice():
    checks.check_choice("cpu", ("auto", "cpu"), "device")
    assert message_of(checks.check_choice, "cuba", iter(("cpu", "cuda")), "device") == (
        "There is no device 'cuba'. Did you mean 'cuda'? Choose one of cpu, cuda."
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("phots", "--data: {0}/phots does not exist. Did you mean 'photos'?"),
        ("phots/train/cats", "--data: {0}/phots does not exist. Did you mean 'photos'?"),
        ("photos/trian", "--data: {0}/photos/trian does not exist. Did you mean 'train'?"),
        ("zzz", "--data: {0}/zzz does not exist."),
    ],
)
def test_a_path_that_is_not_there_names_the_nearest(tmp_path, path, message):
    (tmp_path / "photos" / "train").mkdir(parents=True)
    said = message_of(checks.check_path, str(tmp_path / path), "--data")
    assert said == message.format(tmp_path)


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    checks.check_path("photos", "--data")
    assert message_of(checks.check_path, "phots/a", "--data") == (
        "--data: phots does not exist. Did you mean 'photos'?"
    )


def test_data(tmp_path):
    checks.check_data(DataOptions(root=str(tmp_path)))
    assert "No images are named" in message_of(checks.check_data, DataOptions())
    missing = str(tmp_path / "no")
    said = message_of(checks.check_data, DataOptions(root=str(tmp_path), eval_root=missing))
    assert said.startswith(f"--data.eval-root: {missing} does not exist.")


def test_a_part_of_the_labels_is_asked_for_where_labels_teach(tmp_path):
    checks.check_all_labels(DataOptions(root=str(tmp_path)))
    with pytest.raises(UserError, match="label_fraction is for what learns from labels"):
        checks.check_all_labels(DataOptions(root=str(tmp_path), label_fraction=0.1))
    with pytest.raises(UserError, match="label_seed has no effect with data.label_fraction 1"):
        checks.check_data(DataOptions(root=str(tmp_path), label_seed=1))


@pytest.mark.parametrize("root", ["hf:owner/name", "s3://bucket/a.tar", "shards-{00..09}.tar"])
def test_data_that_is_elsewhere_is_not_looked_for(root):
    checks.check_data(DataOptions(root=root))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "vit_tyni"}, "There is no vision Transformer 'vit_tyni' in timm."),
        ({"embed_dim": 10, "num_heads": 3}, "student.embed_dim 10 does not divide by "
         "student.num_heads 3."),
        ({"img_size": 30, "patch_size": 16}, "student.img_size 30 does not divide by "
         "student.patch_size 16."),
        ({"weights": "tim:vit_tiny_patch16_224"}, "there is no scheme 'tim:'"),
        ({"weights": ".", "embed_dim": 24}, "student.embed_dim has no effect with student.weights"),
        ({"weights": ".", "depth": 2}, "student.depth has no effect with student.weights"),
        ({"weights": ".", "name": "vit_base"}, "student.name has no effect with student.weights"),
    ],
)  # fmt: skip
def test_a_student_that_can_t_be(values, message):
    assert message in message_of(checks.check_student, StudentOptions(**values))


def test_students_that_can_be():
    checks.check_student(StudentOptions())
    checks.check_student(StudentOptions(name="vit_small", embed_dim=24, num_heads=3, img_size=64))
    checks.check_student(StudentOptions(weights="timm:vit_tiny_patch16_224", img_size=64))


def test_options_of_another_method():
    section = PerMethodOptions(relation=RelationOptions(teacher_block=3))
    checks.check_unused(section, PerMethodOptions, "relation", "--method")
    assert message_of(
        checks.check_unused, section, PerMethodOptions, "masked-pixel", "--method"
    ) == ("Options of --relation have no effect with --method masked-pixel.")
    section = PerMethodOptions(masked_pixel=MaskedPixelOptions(mask_ratio=0.5))
    assert "--masked-pixel have no effect" in message_of(
        checks.check_unused, section, PerMethodOptions, "relation", "--method"
    )


def test_a_teacher():
    checks.check_teacher(TeacherOptions())
    checks.check_teacher(TeacherOptions(source="timm:vit_base_patch16_224.mae", img_size=448))
    assert message_of(checks.check_teacher, TeacherOptions(img_size=448)) == (
        "Options of --teacher have no effect without --teacher SOURCE."
    )
    said = message_of(checks.check_teacher, TeacherOptions(source="timm:vit_bse_patch16_224"))
    assert "Did you mean 'vit_base_patch16_224'?" in said


def test_a_teacher_of_logits_alone_may_be_any_model(tmp_path):
    regnet = TeacherOptions(source="timm:regnety_160.deit_in1k")
    checks.check_teacher(regnet, any_model=True)
    assert "'regnety_160' is not supported" in message_of(checks.check_teacher, regnet)
    file = tmp_path / "weights.pth"
    file.touch()
    named = TeacherOptions(source=str(file), model_name="resnet50")
    checks.check_teacher(named, any_model=True)
    assert "'resnet50' is not supported" in message_of(checks.check_teacher, named)
    for source in ("timm:resnet50", str(tmp_path)):
        with pytest.raises(
            UserError, match="model_name is for a weights file, and .* is none; lea"
        ):
            checks.check_teacher(
                TeacherOptions(source=source, model_name="resnet50"), any_model=True
            )


def test_a_method_of_fine_tuning_has_options_only_with_a_teacher():
    named, absent = TeacherOptions(source="timm:vit_base_patch16_224"), TeacherOptions()
    plain = FinetuneConfig()
    soft = FinetuneConfig(logit=LogitOptions(kind="soft"))
    checks.check_task_method(plain, absent)
    checks.check_task_method(soft, named)
    assert message_of(checks.check_task_method, soft, absent) == (
        "Options of --logit have no effect without --teacher SOURCE."
    )
    assert "There is no method 'logits'. Did you mean 'logit'?" in message_of(
        checks.check_task_method, FinetuneConfig(method="logits"), named
    )


def test_a_teacher_or_its_targets_are_named_only_where_they_are_needed():
    named, absent = TeacherOptions(source="timm:vit_base_patch16_224"), TeacherOptions()
    stored, live = TargetsOptions(source="targets"), TargetsOptions()
    check = checks.check_needs_teacher
    check("relation", MethodOptions(), named, live)
    check("relation", MethodOptions(), absent, stored)
    check("masked-pixel", MaskedPixelOptions(), absent, live)
    said = message_of(check, "relation", MethodOptions(), absent, live)
    assert said.startswith("The method relation needs a teacher; name one, such as --teacher ")
    assert message_of(check, "masked-pixel", MaskedPixelOptions(), named, live) == (
        "The method masked-pixel has no teacher; leave --teacher out."
    )
    assert message_of(check, "masked-pixel", MaskedPixelOptions(), absent, stored) == (
        "The method masked-pixel has no teacher; leave --targets out."
    )
    assert "leave one of the two out" in message_of(
        check, "relation", MethodOptions(), named, stored
    )


def test_the_loop():
    checks.check_train(TrainOptions(), OptimOptions())
    said = message_of(
        checks.check_train,
        TrainOptions(global_batch_size=10, accumulate_steps=4),
        OptimOptions(),
    )
    assert said == "train.global_batch_size 10 does not divide by train.accumulate_steps 4."
    said = message_of(checks.check_train, TrainOptions(epochs=5), OptimOptions(warmup_epochs=5))
    assert said.startswith("optim.warmup_epochs 5 leaves nothing of train.epochs 5; lower")


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
@pytest.mark.parametrize(
    ("steps", "processes", "size"), [(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 1, 4)]
)
def test_mixing_needs_another_image(monkeypatch, steps, processes, size):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    train = TrainOptions(global_batch_size=4, accumulate_steps=steps)
    checks.check_mixing(MixOptions(label_smoothing=0.1), train)
    checks.check_mixing(MixOptions(mixup_alpha=0.2, mix_prob=0.0), train)
    for mix in (MixOptions(mixup_alpha=0.2), MixOptions(cutmix_alpha=1.0)):
        if size > 1:
            checks.check_mixing(mix, train)
            continue
        said = message_of(checks.check_mixing, mix, train)
        assert f"4 / accumulate_steps {steps} / {processes} processes has 1: nothing" in said
        assert "lower --train.accumulate-steps" in said and "--mix.mixup-alpha 0" in said


def test_what_only_adamw_has():
    default = OptimOptions(betas=(0.9, 0.999))
    checks.check_optimizer(OptimOptions(optimizer="sgd", betas=(0.9, 0.999)), default)
    checks.check_optimizer(OptimOptions(optimizer="sgd"), default)
    checks.check_optimizer(OptimOptions(betas=(0.5, 0.5), eps=1e-3), default)
    for name, value in {"betas": (0.8, 0.95), "eps": 1e-6}.items():
        message = message_of(
            checks.check_optimizer, replace(default, optimizer="sgd", **{name: value}), default
        )
        assert f"optim.{name} has no effect with optim.optimizer sgd; leave it out." in message


def test_an_absent_logger_is_told_before_the_run():
    said = message_of(checks.check_train, TrainOptions(wandb_project="a"), OptimOptions())
    assert said.endswith("run: pip install 'limbeck[wandb]'.")


@pytest.mark.parametrize(
    ("source", "is_bare"),
    [("vit_tiny", True), ("timm:vit_tiny", False), ("runs/a", False), ("here", False)],
)
def test_a_bare_name(tmp_path, monkeypatch, source, is_bare):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert checks.is_bare_name(source) is is_bare


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_vit_5m:embed_dims=32-64-96-100:head_dim=32", "embed_dims 100 does not divide by"),
        ("tiny_vit_5m:embed_dim=64", "is built of stages, so embed_dim can't be set"),
        ("vit_tiny:depths=1-1-1-1", "'vit_tiny' is no TinyViT, so depths can't be set"),
    ],
)
def test_shapes_that_a_family_does_not_have(name, message):
    assert message in message_of(checks.check_student, StudentOptions(name=name))


def test_bare_names_may_say_a_shape():
    assert checks.is_bare_name("vit_tiny:depth=10") and not checks.is_bare_name("timm:vit_tiny")
    checks.check_start("vit_tiny:depth=10")
    assert "Did you mean 'vit_tiny'" in message_of(checks.check_start, "vit_tyni:depth=10")


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("vit.pid", "There is no vision Transformer 'vitt_tiny' in timm. Did you mean 'vit_tiny'"),
        ("vitt_tiny1", "There is no run or file vitt_tiny here.* Did you mean 'vitt_tiny1'"),
    ],
)
def test_a_mistyped_bare_word_is_the_nearest_of_runs_and_models(
    there, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / there).touch()
    with pytest.raises(UserError, match=message):
        checks.check_start("vitt_tiny")
