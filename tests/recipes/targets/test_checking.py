"""``store-targets --check`` sees what is wrong with a store, and passes one that is good."""

import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from limbeck import cli
from limbeck.data.options import CropOptions, DataOptions, StoreOptions
from limbeck.errors import UserError
from limbeck.methods.options import RelationOptions
from limbeck.methods.teacher import Teacher
from limbeck.models.options import TeacherOptions
from limbeck.recipes.targets.store_targets import StoreTargetsConfig, report, store_targets
from limbeck.recipes.train.distill import distill
from tests.recipes.runs import STUDENT_SHAPE, teacher_config


def config_of(images, out, teacher, **changes):
    return StoreTargetsConfig(
        out=str(out),
        method="relation",
        relation=RelationOptions(drop_path_rate=0.0),
        student=STUDENT_SHAPE,
        teacher=TeacherOptions(source=str(teacher), precision="fp32"),
        data=DataOptions(root=str(images), num_workers=0),
        store=StoreOptions(num_views=2, batch_size=16),
        device="cpu",
        **changes,
    )


@pytest.fixture(scope="module")
def made(images, teacher, tmp_path_factory):
    """A store of all images; nothing may write into it."""
    out = tmp_path_factory.mktemp("made") / "store"
    store_targets(config_of(images, out, teacher))
    return out


@pytest.fixture
def case(made, images, teacher, tmp_path):
    """A copy of the store and of the images, and the config that checks them."""
    shutil.copytree(made, tmp_path / "store")
    shutil.copytree(images, tmp_path / "photos")
    config = config_of(tmp_path / "photos", tmp_path / "store", teacher, check=True)
    return tmp_path, replace(config, num_checked=24)


def test_a_good_store_passes(case):
    _, config = case
    checked = store_targets(config)
    assert checked.problems == []
    assert (checked.num_images, checked.num_records, checked.num_unused) == (48, 48, 0)
    assert checked.num_fingerprints == 32
    assert len(checked.distances) == 24
    assert max(checked.distances) < 1e-3  # the same machine: only batches differ
    said = report(checked)
    assert "24 answers given anew, median distance" in said
    assert said.endswith("The store is good.")


def test_all_damage_is_listed_at_once(case):
    folder, config = case
    file = folder / "store" / "part-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    shutil.copy(folder / "store" / "part-00000.json", folder / "store" / "part-00007.json")
    checked = store_targets(config)
    said = "\n".join(checked.problems)
    assert "part-00007.json is not of this store" in said
    assert "part-00000.safetensors is not what was written (its checksum differs)" in said
    assert "48 of 48 images have no record" in said


def test_missing_images_are_named_and_listed(case):
    folder, config = case
    for number in range(12):
        photo = folder / "photos" / "blue" / f"new{number:02d}.png"
        shutil.copy(folder / "photos" / "red" / "000.png", photo)
    (folder / "photos" / "green" / "000.png").unlink()
    checked = store_targets(config)
    (problem,) = checked.problems
    assert problem.startswith("12 of 59 images have no record: blue/new00.png, ")
    assert "and 2 more; all are listed in" in problem
    lines = (folder / "store.missing.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(checked.missing)
    assert (checked.num_records, checked.num_unused) == (48, 1)
    store_targets(replace(config, check=False, num_checked=256, resume=True))
    assert store_targets(config).problems == []


def test_another_image_of_a_name_is_seen(case):
    folder, config = case
    reader_key = json.loads((folder / "store" / "part-00000.json").read_text())
    key, view = (reader_key["fingerprints"][0][name] for name in ("key", "view"))
    Image.new("RGB", (40, 36), "white").save(folder / "photos" / key)
    checked = store_targets(replace(config, num_checked=96))
    assert checked.problems[0].startswith(f"View {view} of {key} has other pixels than when its")
    assert "all of the versions that were written down are the same" in checked.problems[0]
    assert f"view 1 of {key} (" in checked.problems[1]


def test_a_teacher_that_says_something_else_is_seen(case, monkeypatch):
    _, config = case
    # As a driver or library with other numerics would: the manifest can't tell.
    answer = Teacher.answer
    monkeypatch.setattr(
        Teacher, "answer", lambda self, batch, taps: answer(self, shifted(batch), taps)
    )
    checked = store_targets(config)
    far, alike = checked.problems
    assert far.startswith("24 of 24 answers are further from the stored ones than 0.01: view ")
    assert "and 14 more. The teacher, its precision" in far
    assert store_targets(replace(config, max_distance=9.0)).problems == [alike]
    assert alike.startswith("The answers are hardly nearer to their own records (median distance")


def shifted(batch):
    return replace(batch, teacher_images=1 - batch.teacher_images)


def test_another_teacher_or_recipe_is_named(case, images, tmp_path_factory):
    folder, config = case
    run = replace(teacher_config(images, folder / "other"), seed=5)
    other = TeacherOptions(source=str(distill(run)), precision="fp32")
    checked = store_targets(replace(config, teacher=other, crop=CropOptions(scale=(0.5, 1.0))))
    said = checked.problems[-1]
    assert said.startswith("The store was made otherwise: teacher.weights is ")
    assert "recipe.views.scale is [0.2, 1.0] there and [0.5, 1.0] here" in said
    assert checked.distances == ()


def test_images_that_could_not_be_read_are_no_problem(images, teacher, tmp_path):
    shutil.copytree(images, tmp_path / "photos")
    (tmp_path / "photos" / "red" / "003.png").write_bytes(b"no image")
    config = config_of(tmp_path / "photos", tmp_path / "store", teacher)
    config = replace(config, data=replace(config.data, max_bad_ratio=0.1))
    store_targets(config)
    checked = store_targets(replace(config, check=True))
    assert checked.problems == []
    assert list(checked.skipped) == ["red/003.png"]
    assert "not read    red/003.png (" in report(checked)


def test_class_probabilities_are_compared_too(images, classifier, tmp_path, monkeypatch):
    config = config_of(images, tmp_path / "store", classifier)
    config = replace(config, method="sparse-logit", relation=RelationOptions())
    store_targets(config)
    config = replace(config, check=True, num_checked=24)
    checked = store_targets(config)
    assert checked.problems == []
    assert len(checked.distances) == 24
    answer = Teacher.answer
    monkeypatch.setattr(
        Teacher, "answer", lambda self, batch, taps: answer(self, shifted(batch), taps)
    )
    # A teacher of a few steps says nearly the same of any image: 0.005 would let much pass.
    assert "hardly nearer to their own records" in store_targets(config).problems[-1]
    problems = store_targets(replace(config, max_distance=1e-4)).problems
    assert "answers are further from the stored ones than 0.0001: view " in problems[0]


def test_options_without_effect_are_refused(images, teacher, tmp_path):
    config = config_of(images, tmp_path / "store", teacher)
    with pytest.raises(UserError, match="num_checked has no effect without --check; leave it out"):
        store_targets(replace(config, num_checked=3))
    with pytest.raises(UserError, match="--resume has no effect with --check"):
        store_targets(replace(config, check=True, resume=True))
    with pytest.raises(UserError, match="there is no store .*or write one with limbeck"):
        store_targets(replace(config, check=True))


def test_the_command_ends_with_1_where_it_finds_problems(case, teacher, capsys):
    folder, _ = case
    shape = STUDENT_SHAPE
    words = [
        *("store-targets", "--check", "--out", str(folder / "store"), "--method", "relation"),
        *("--relation.drop-path-rate", "0", "--student", shape.name, "--device", "cpu"),
        *("--data", str(folder / "photos"), "--data.num-workers", "0"),
        *("--teacher", str(teacher), "--teacher.precision", "fp32", "--store.num-views", "2"),
    ]
    for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads"):
        words += [f"--student.{name.replace('_', '-')}", str(getattr(shape, name))]
    cli.main(words)
    assert "The store is good." in capsys.readouterr().out
    (folder / "store" / "part-00000.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 1
    assert "PROBLEM     1 of the 1 parts" in capsys.readouterr().out
