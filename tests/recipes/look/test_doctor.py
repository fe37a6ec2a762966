"""``doctor``: bad files and copies are listed, problems told from warnings, the run forecast."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from limbeck.data.options import CropOptions, DataOptions, TargetsOptions
from limbeck.data.scenes.open import open_both
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.skipped import SkippedLog
from limbeck.engine import machine
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.errors import UserError
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.look.doctor import (
    DoctorConfig,
    DoctorDetectConfig,
    DoctorFinetuneConfig,
    DoctorSegmentConfig,
    doctor,
    report,
)
from limbeck.recipes.look.forecast import judge_forecast
from limbeck.recipes.targets.store_targets import StoreTargetsConfig, store_targets
from tests.data.images import encode, photo, write_shard
from tests.data.scenes.test_open import PROBLEMS, bad_set
from tests.recipes.objects import detect_config
from tests.recipes.runs import STUDENT_SHAPE, draw_unlabelled, finetune_config, snapshot
from tests.recipes.scenes import draw_scenes, segment_config


def config_of(root, tmp_path, teacher=None, *, batch=16, **data):
    return DoctorConfig(
        out=tmp_path / "no" / "such" / "run",
        student=STUDENT_SHAPE,
        teacher=TeacherOptions(source=teacher and str(teacher)),
        data=DataOptions(root=str(root), num_workers=0, **data),
        train=TrainOptions(epochs=4, global_batch_size=batch, precision="fp32", device="cpu"),
    )


def test_good_images_and_a_forecast(images, teacher, tmp_path):
    before = snapshot(images) | snapshot(teacher)
    found = doctor(config_of(images, tmp_path, teacher, holdout_ratio=0.25))
    assert found.problems == []
    assert found.scan.num_readable == 48
    forecast = found.forecast
    assert forecast.total_steps == 8
    assert forecast.step_seconds > 0
    assert forecast.data_seconds > 0
    # Without loader processes images and arithmetic take turns.
    assert forecast.total_seconds == 8 * (forecast.step_seconds + forecast.data_seconds)
    assert 0 < forecast.memory < forecast.memory_total
    assert 0 < forecast.disk < forecast.disk_free
    assert set(forecast.losses) == {"qk", "vv"}
    assert "2 blocks, width 24, 3/4 heads, 32 px" in forecast.student
    assert "3 blocks, width 32, 4 heads, 32 px" in forecast.teacher
    assert snapshot(images) | snapshot(teacher) == before
    assert not (tmp_path / "no").exists()
    said = report(found)
    assert said.endswith("Ready.")
    assert "images      48 readable of 48" in said
    assert "classes     3: blue 16, green 16, red 16" in said
    assert "whole run   8 steps, about" in said


def test_without_a_teacher_only_the_images(unlabelled, tmp_path):
    found = doctor(config_of(unlabelled, tmp_path))
    assert found.forecast is None
    assert report(found).endswith(
        "The images are ready; add --teacher (or --targets) to try a step."
    )
    assert any("images are few" in text for text in found.warnings)


@pytest.mark.parametrize("changes", [{"method": "feature"}, {"chain": "vit_small,vit_tiny"}])
def test_whatever_the_method(unlabelled, tmp_path, changes):
    config = replace(config_of(unlabelled, tmp_path), **changes)
    config = replace(config, student=StudentOptions(img_size=32, patch_size=8))
    assert doctor(config).forecast is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "relatoin"}, "Did you mean 'relation'"),
        ({"method": "limbeck.methods.relation:Relatoin"}, "Did you mean 'Relation'"),
        ({"student": StudentOptions(name="vit_tyni")}, "Did you mean 'vit_tiny'"),
        ({"train": TrainOptions(global_batch_size=3, accumulate_steps=2)}, "does not divide"),
    ],
)
def test_mistakes_are_told_without_a_teacher_too(unlabelled, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        doctor(replace(config_of(unlabelled, tmp_path), **changes))


def test_a_method_without_a_teacher_is_tried(unlabelled, tmp_path):
    found = doctor(replace(config_of(unlabelled, tmp_path), method="masked-pixel"))
    assert set(found.forecast.losses) == {"pixel"}
    assert found.forecast.teacher == "none"


def test_the_forecast_of_the_disk_holds(unlabelled, tmp_path):
    """A real run of the same config takes no more than forecast, and not much less."""
    from limbeck.recipes.run.options import DistillConfig
    from limbeck.recipes.train.distill import distill

    config = replace(config_of(unlabelled, tmp_path), method="masked-pixel")
    values = {name: getattr(config, name) for name in config.__dataclass_fields__}
    run = distill(DistillConfig(**values | {"out": tmp_path / "run"}))
    largest = (run / "checkpoint.pt").stat().st_size + (run / "student.safetensors").stat().st_size
    assert largest < doctor(config).forecast.disk < 5 * largest


def test_what_machine_this_is_and_what_follows(unlabelled, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "cpu_kind", lambda: "AVX2, no bf16 instructions")
    monkeypatch.setattr(machine, "product_seconds", lambda dtype: (1.0, 73.0))
    monkeypatch.setattr(machine, "build_unfit", lambda: "The installed PyTorch is another.")
    config = config_of(unlabelled, tmp_path)
    auto = replace(config, method="masked-pixel", train=replace(config.train, precision="auto"))
    said = report(doctor(auto)).splitlines()
    assert said[0].startswith("machine     ") and "AVX2, no bf16 instructions" in said[0]
    words = " ".join(" ".join(said).split())  # without the folding
    assert "precision: fp32, because bf16 products are 73 times slower on this CPU (AVX2" in words
    assert "WARNING     The installed PyTorch is another." in said
    stated = doctor(config)
    assert stated.machine[1:] == ["1 thread, 0 loader processes"] and stated.forecast is None


def test_bad_files_and_copies_are_listed(tmp_path):
    folder = draw_unlabelled(tmp_path / "images", 24)
    (folder / "000.png").write_bytes((folder / "000.png").read_bytes()[:100])
    (folder / "001.png").write_bytes(b"")
    shutil.copy(folder / "002.png", folder / "copy.png")
    found = doctor(config_of(folder, tmp_path, batch=8, max_bad_ratio=0.2))
    assert {key for key, _ in found.scan.bad} == {"000.png", "001.png"}
    assert found.scan.duplicates == (("002.png", "copy.png"),)
    assert found.problems == []
    assert "2 images can't be read and will be skipped." in found.warnings
    assert "1 images are exact copies of others." in found.warnings
    said = report(found)
    assert "bad         000.png: " in said
    assert "same bytes  002.png, copy.png" in said


def test_what_is_left_out_of_shards_is_a_warning_told_once(tmp_path):
    root = tmp_path / "shards"
    root.mkdir()
    photos = [encode(photo(seed=seed)) for seed in range(10)]
    members = [(f"{number}.jpg", data) for number, data in enumerate(photos)]
    write_shard(root / "train-0.tar", [*members, ("__MACOSX/x.jpg", photos[0])])
    write_shard(root / "test-0.tar", members[:8])
    (root / "labels.csv").touch()
    warnings = doctor(config_of(root, tmp_path, batch=4, eval_root=str(root))).warnings
    for said in ("1 other file (.csv 1) left out.", "train is taken (1 of 2", "other programs"):
        assert sum(said in warning for warning in warnings) == 1


def test_too_many_bad_files_are_a_problem(teacher, tmp_path):
    folder = draw_unlabelled(tmp_path / "images", 24)
    (folder / "000.png").write_bytes(b"")
    found = doctor(config_of(folder, tmp_path, teacher, batch=8))
    assert found.problems == [
        "1 of 24 images can't be read, more than --data.max-bad-ratio 0.01 allows."
    ]
    assert found.forecast is None
    assert "PROBLEM     1 of 24 images" in report(found)
    assert "eady" not in report(found)


def test_a_batch_that_is_too_large_is_fitted_and_said(unlabelled, teacher, tmp_path):
    found = doctor(config_of(unlabelled, tmp_path, teacher, batch=64, holdout_ratio=0.0))
    assert found.problems == [] and found.forecast.total_steps == 4 * 48 // 8
    assert (
        "48 training images do not fill a batch of 64: a step will have 8 of them "
        "(--train.global-batch-size 8)." in found.warnings
    )


def test_uneven_classes_are_a_warning(tmp_path):
    draw_unlabelled(tmp_path / "images" / "many", 42)
    draw_unlabelled(tmp_path / "images" / "few", 2)
    found = doctor(config_of(tmp_path / "images", tmp_path))
    assert "Classes are uneven: 2 to 42 images." in found.warnings


def test_too_little_memory_or_disk_is_a_problem(images, teacher, tmp_path):
    forecast = doctor(config_of(images, tmp_path, teacher)).forecast
    assert judge_forecast(forecast) == []
    memory, disk = judge_forecast(replace(forecast, memory_total=2**20, disk_free=10))
    assert "raise --train.accumulate-steps" in memory
    assert "10 B are free" in disk


def test_mistakes_are_those_of_distill(images, teacher, tmp_path):
    config = config_of(images, tmp_path, teacher)
    config = replace(config, optim=OptimOptions(warmup_epochs=9))
    with pytest.raises(UserError, match="optim.warmup_epochs 9 leaves nothing of train.epochs 4"):
        doctor(config)
    with pytest.raises(UserError, match="does not exist"):
        doctor(config_of(tmp_path / "phots", tmp_path))


def test_the_held_out_root_is_scanned_too(images, tmp_path):
    held_out = tmp_path / "held_out"
    shutil.copytree(images, held_out)
    (held_out / "red" / "000.png").write_bytes(b"broken")
    found = doctor(config_of(images, tmp_path, eval_root=str(held_out)))
    assert found.scan.num_images == 96
    assert [key for key, _ in found.scan.bad] == ["2:red/000.png"]
    assert len(found.scan.duplicates) == 47  # every other image is in both


def test_a_teacher_of_ones_own(images, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[3] / "examples")
    found = doctor(config_of(images, tmp_path, "own_teacher:build"))
    assert "own_teacher:build: 3 blocks, width 48, 4 heads" in report(found)


def test_a_store_in_the_teachers_place_is_tried(images, classifier, tmp_path):
    out = tmp_path / "store"
    config = config_of(images, tmp_path)
    store_targets(
        StoreTargetsConfig(
            out=str(out),
            student=STUDENT_SHAPE,
            teacher=TeacherOptions(source=str(classifier), precision="fp32"),
            data=config.data,
            device="cpu",
        )
    )
    config = replace(
        config, method="sparse-logit", targets=TargetsOptions(source=str(out)),
        teacher=TeacherOptions(),
    )  # fmt: skip
    found = doctor(config)
    assert found.problems == [] and found.forecast is not None
    assert found.forecast.losses
    assert (
        "stored answers of" in found.forecast.teacher and "to 48 images" in found.forecast.teacher
    )
    assert report(found).endswith("Ready.")
    with pytest.raises(UserError, match="views.scale is"):
        doctor(replace(config, crop=CropOptions(scale=(0.5, 1.0))))
    file = out / "part-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match="is not what was written"):
        doctor(config)


def test_a_long_run_is_not_just_ready(unlabelled, teacher, tmp_path):
    found = doctor(config_of(unlabelled, tmp_path, teacher))
    assert report(found).endswith("\nReady.")
    assert max(map(len, report(found).splitlines())) <= 80
    assert "\n            " in report(found)  # a second line begins where the first one's text does
    week = replace(found.forecast, total_seconds=7 * 86400.0, data_seconds=0.1, step_seconds=0.2)
    said = " ".join(report(replace(found, forecast=week)).split())
    assert said.endswith(
        "It fits on this machine, but takes 7.0 days. Shorter: 14 % of the --train.epochs take a "
        "day; a smaller --student.img-size or student; a smaller teacher, or its answers stored "
        "once (limbeck store-targets); a GPU."
    )
    slow = report(replace(found, forecast=replace(week, data_seconds=1.0)))
    assert "--data.num-workers" in slow and "Ready" not in slow


def test_a_system_that_tells_no_memory(unlabelled, teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    found = doctor(config_of(unlabelled, tmp_path, teacher, batch=8))
    assert found.problems == [] and found.forecast.memory > 0  # of what is trained alone


def segment_words(scenes, **changes):
    return DoctorSegmentConfig(**vars(segment_config(scenes, Path("no/such/run"), **changes)))


def test_scenes_and_a_forecast_of_a_segmentation(scenes, segmenter):
    before = snapshot(scenes)
    found = doctor(segment_words(scenes))
    assert found.problems == [] and snapshot(scenes) == before
    assert (found.scan.num_scenes, found.held_out.num_scenes) == (18, 6)
    assert found.scan.scenes == {"ground": 18, "box": 18}
    forecast = found.forecast
    assert forecast.total_steps == 14 * 2 and set(forecast.losses) == {"pixels"}
    assert "with light: 2 blocks, width 24" in forecast.student
    said = report(found)
    assert said.endswith("Ready.") and "held out    6 scenes" in said
    assert "WARNING     6 held-out images can't tell much." in said
    teacher = TeacherOptions(source=str(segmenter), precision="fp32")
    taught = doctor(segment_words(scenes, teacher=teacher)).forecast
    assert set(taught.losses) == {"pixels", "channel_wise"}
    assert "2 blocks, width 24" in taught.teacher


def test_the_five_troubles_of_masks_and_the_balance(tmp_path):
    """Another size, a value that is no class, nothing but ignored, unreadable, and none at all."""
    names = ("sky", "road", "car", "dog")
    data = {"root": str(bad_set(tmp_path)), "class_names": names, "holdout_ratio": 0.5}
    data = SceneOptions(**data, num_workers=0)
    config = segment_words(tmp_path, student="", data=data)
    found = doctor(config)
    bad = dict([*found.scan.bad, *found.held_out.bad])
    assert bad.keys() == PROBLEMS.keys() and found.forecast is None
    said = " ".join(report(found).split())
    for key, reason in {**bad, "images/e5.jpg": "it has no mask"}.items():
        assert f"bad {key}: {reason}" in said
    assert "class dog: 0.0 % of the pixels, nowhere" in said
    assert "No pixel to train on is of dog: it is not learnt." in found.warnings
    assert "1 images are left out: they have no mask." in found.warnings
    assert found.problems == [
        "4 of 15 scenes can't be read, more than --data.max-bad-ratio 0.01 allows."
    ]
    lenient = replace(data, max_bad_ratio=0.5)
    found = doctor(replace(config, data=lenient))
    assert found.problems == [] and report(found).endswith("add --student to try a step.")
    none = doctor(replace(config, data=replace(lenient, holdout_ratio=0.25)))  # but a bad one
    assert none.problems == ["No held-out scene can be used, so nothing could be scored."]
    refusing = doctor(replace(config, data=replace(lenient, broken="refuse")))
    assert refusing.problems == [
        "5 scenes can't be used, which --data.broken refuse refuses; repair or remove them, or "
        "pass --data.broken skip."
    ]


def test_a_class_that_is_never_held_out(tmp_path):
    scenes = draw_scenes(tmp_path, 12)
    train, held_out = open_both(segment_config(scenes, tmp_path / "run").data)
    for index in range(len(held_out)):
        labels = held_out.read_mask(index) * 0
        Image.fromarray(labels).save(scenes / held_out.mask_name(index))
    found = doctor(segment_words(scenes, student=""))
    assert "No held-out pixel is of box: it is not scored." in found.warnings


def test_mistakes_are_those_of_the_verb(images, unlabelled, scenes):
    with pytest.raises(UserError, match="Did you mean 'channel-wise'"):
        doctor(segment_words(scenes, student="", method="chanel-wise"))
    with pytest.raises(UserError, match="There are no masks in"):
        doctor(segment_words(images))
    with pytest.raises(UserError, match="has no labels; fine-tuning needs"):
        doctor(DoctorFinetuneConfig(data=DataOptions(root=str(unlabelled), holdout_ratio=0.25)))


def test_a_fine_tuning_is_tried(images, student, classifier, tmp_path):
    config = finetune_config(images, tmp_path / "run", student)
    found = doctor(config)  # of the verb's own class
    assert found.problems == [] and set(found.forecast.losses) == {"class"}
    assert found.forecast.teacher == "none" and report(found).endswith("Ready.")
    source = TeacherOptions(source=str(classifier), precision="fp32")
    taught = doctor(replace(config, teacher=source)).forecast
    assert "3 blocks, width 32" in taught.teacher
    alone = doctor(replace(config, student=""))
    assert alone.forecast is None and report(alone).endswith("add --student to try a step.")
    assert not (tmp_path / "run").exists()


def detect_words(objects, **changes):
    return DoctorDetectConfig(**vars(detect_config(objects, Path("no/such/run"), **changes)))


def test_boxes_and_a_forecast_of_a_detection(objects, tmp_path):
    found = doctor(replace(detect_words(objects), examples=tmp_path / "shown"))
    assert not found.problems and found.forecast.total_steps == 20
    assert found.scan.num_images == 18 and found.held_out.num_images == 6
    assert found.scan.num_negatives + found.held_out.num_negatives == 3
    text = report(found)
    for words in ("negatives", "bright: ", "held out    6 images", "Ready."):
        assert words in text
    assert len(list((tmp_path / "shown").glob("*.png"))) == 5


def test_the_step_that_is_tried_is_of_the_fullest_images(objects, monkeypatch):
    from limbeck.recipes.look import doctor as module

    seen = []

    def spy(plan, ranks):
        small = replace(plan.config.train, global_batch_size=2)
        config = replace(plan.config, train=small)
        seen.append(next(plan.stream(config, SkippedLog(None, 24, 1.0), 0, 1)))
        return module_try_step(plan, ranks)

    module_try_step = module.try_step
    monkeypatch.setattr(module, "try_step", spy)
    doctor(detect_words(objects))
    assert all(len(each.boxes) == 2 for each in seen[0].objects)


def test_without_a_student_boxes_alone_are_looked_at(objects, tmp_path):
    found = doctor(detect_words(objects, student=""))
    assert found.forecast is None and "add --student to try a step" in report(found)
    with pytest.raises(UserError, match="There are no boxes"):
        doctor(detect_words(tmp_path, student=""))
