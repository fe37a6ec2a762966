"""``convert-targets``: the released layout as a store, and a training from it."""

import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck.cli import run
from limbeck.data.options import CropOptions, DataOptions
from limbeck.data.released_logits import ReleasedLogits, soft_labels
from limbeck.data.target_store.located import seed_of_view
from limbeck.data.target_store.reader import SKIPPED, TargetReader
from limbeck.errors import UserError
from limbeck.methods.targets import StoredTeacher
from limbeck.models.options import TeacherOptions
from limbeck.recipes.targets.convert_targets import (
    ConvertTargetsConfig,
    check,
    convert_targets,
    report,
)
from limbeck.recipes.train.distill import distill
from limbeck.records import Batch
from tests.data.released import write_rank, write_released
from tests.recipes.runs import distill_config, draw_unlabelled, metrics_of

NUM_CLASSES, NUM_KEPT, NUM_VIEWS = 12, 4, 3


def keys_of(folder):
    return sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.png"))


@pytest.fixture(scope="module")
def released(images, tmp_path_factory):
    """Soft labels of the 48 images in class folders, written by two processes."""
    root = tmp_path_factory.mktemp("released")
    write_released(
        root, keys_of(images), num_epochs=NUM_VIEWS, num_classes=NUM_CLASSES, num_kept=NUM_KEPT,
        ranks=2,
    )  # fmt: skip
    return root


@pytest.fixture(scope="module")
def store(images, released, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / "store"
    convert_targets(config_of(released, out, images))
    return out


def config_of(released, out, images, **values):
    return ConvertTargetsConfig(
        source=str(released),
        out=str(out),
        **{"num_classes": NUM_CLASSES, "data": DataOptions(root=str(images))} | values,
    )


def labels_of(reader, keys, view):
    """What a training is told of these images."""
    arrays = reader.read(reader.locate(keys), view)
    targets = {name: torch.from_numpy(array) for name, array in arrays.items()}
    images = torch.zeros(len(keys), 3, 8, 8)
    batch = Batch(images, images, None, tuple(keys), torch.zeros(len(keys)), targets=targets)
    return StoredTeacher(reader.manifest, {}, torch.device("cpu")).answer(batch, ()).soft_labels


def test_every_record_is_found_by_its_image(images, released, store):
    reader, layout = TargetReader(str(store)), ReleasedLogits(released, NUM_CLASSES)
    keys = keys_of(images)
    for view in range(NUM_VIEWS):
        places = layout.keys(view)
        records = layout.read(view, np.array([places[key] for key in keys]))
        names = [f"{key}.png" for key in keys]
        seeds = [seed_of_view(reader, name, view) for name in names]
        assert seeds == records.view_seeds.tolist()
        expected, found = soft_labels(records, NUM_CLASSES), labels_of(reader, names, view)
        assert torch.equal(found.classes, expected.classes)
        # The one of four that is neither first, second nor last has 12 bits.
        torch.testing.assert_close(found.probs, expected.probs, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(found.rest, expected.rest, atol=1e-6, rtol=1e-5)
    assert reader.manifest.recipe == {"seed": None, "views": "released"}
    facts = reader.manifest.teacher["facts"]
    assert facts["origin"]["source"] == "unknown teacher, released layout"
    assert facts["num_classes"] == NUM_CLASSES and reader.num_views == NUM_VIEWS
    assert reader.manifest.data["converted_from"] == str(released)


def test_the_command_line_has_short_names(images, released, tmp_path, capsys):
    store = str(tmp_path / "store")
    run(["convert-targets", str(released), store, "--data", str(images), "--classes", "12"])
    assert f"--targets {store}" in capsys.readouterr().out
    assert len(TargetReader(store)) == 48


def test_the_published_record_keeps_its_loss(tmp_path):
    images = draw_unlabelled(tmp_path / "images", count=2)
    rows = np.array([[7, 2, 5]] * 2), np.array([[0.7, 0.2, 0.05]] * 2)
    folder = tmp_path / "released" / "logits_top3_epoch0"
    write_rank(folder, 0, ["000", "001"], np.array([12345, 1]), *rows)
    config = config_of(
        tmp_path / "released", tmp_path / "store", images, num_classes=10, keys="names"
    )
    convert_targets(replace(config, teacher="clip"))
    reader = TargetReader(config.out)
    assert reader.manifest.teacher["facts"]["origin"]["source"] == "clip"
    labels = labels_of(reader, ["000.png"], 0)
    dense = labels.rest[:, None].double().expand(1, 10) / 7
    dense = dense.scatter(1, labels.classes, labels.probs.double())
    logits = (torch.arange(10) / 10).double()
    loss = -(dense * logits.log_softmax(0)).sum().item()
    assert loss == pytest.approx(2.2162890843854, abs=1e-7)  # float32
    assert seed_of_view(reader, "000.png", 0) == 12345


def test_what_is_done_is_not_done_again_and_what_is_lost_is(images, released, tmp_path):
    config = config_of(released, tmp_path / "store", images)
    done = convert_targets(config)
    assert (done.num_images, done.num_new, done.num_without, done.num_unknown) == (48, 48, 0, 0)
    said = report(done)
    assert "soft labels of 48 images (top 4 of 3 views each)" in said and "0.15 %" in said
    files = {file.name: file.read_bytes() for file in (tmp_path / "store").iterdir()}
    assert convert_targets(config).num_new == 0
    (tmp_path / "store" / "part-00000.json").unlink()
    assert convert_targets(config).num_new == 48
    assert {file.name: file.read_bytes() for file in (tmp_path / "store").iterdir()} == files
    with pytest.raises(UserError, match="holds another store"):
        convert_targets(replace(config, num_classes=13))


def test_a_store_is_of_one_released_set(images, released, tmp_path):
    config = config_of(released, tmp_path / "store", images)
    convert_targets(config)
    (tmp_path / "store" / "part-00000.json").unlink()
    write_released(
        tmp_path / "other", keys_of(images), num_epochs=NUM_VIEWS, num_classes=NUM_CLASSES,
        num_kept=NUM_KEPT,
    )  # fmt: skip
    with pytest.raises(UserError, match="was begun with other soft labels"):
        convert_targets(replace(config, source=str(tmp_path / "other")))
    shutil.copytree(released, tmp_path / "moved")
    assert convert_targets(replace(config, source=str(tmp_path / "moved"))).num_new == 48


def test_images_without_a_record_are_listed(images, tmp_path):
    keys = keys_of(images)
    root = tmp_path / "released"
    shape = {"num_classes": NUM_CLASSES, "num_kept": NUM_KEPT}
    write_released(root, [*keys[1:], "other"], num_epochs=2, **shape)
    file = root / "logits_top4_epoch1" / "rank0-keys.txt"
    file.write_text(file.read_text().replace(f"{keys[5]}\n", "another\n"))
    done = convert_targets(config_of(root, tmp_path / "store", images))
    assert (done.num_images, done.num_new, done.num_without, done.num_unknown) == (48, 46, 2, 1)
    said = report(done)
    assert "2 images have no record" in said and "1 keys are of no image here" in said
    reader = TargetReader(str(tmp_path / "store"))
    skipped = {}
    for record in reader.records.values():
        skipped |= record.skipped
    assert skipped == {
        f"{keys[0]}.png": "the released set has no record of it",
        f"{keys[5]}.png": "the released set has no record of it in epoch 1",
    }
    rows = reader.locate([f"{key}.png" for key in keys])
    assert (rows[[0, 5]] == SKIPPED).all() and (np.delete(rows, [0, 5]) >= 0).all()


def test_positions_have_to_be_asked_for_and_are_said_loudly(images, tmp_path, caplog):
    keys = [str(position) for position in range(48)]
    write_released(
        tmp_path / "released", keys, num_epochs=1, num_classes=NUM_CLASSES, num_kept=NUM_KEPT
    )
    config = config_of(tmp_path / "released", tmp_path / "store", images)
    with pytest.raises(UserError, match=r"keys are numbers, such as \d+: pass --keys positions"):
        convert_targets(config)
    with pytest.raises(UserError, match="No key"):
        convert_targets(replace(config, keys="names"))
    assert not (tmp_path / "store").exists()
    with caplog.at_level(logging.WARNING, "limbeck"):
        convert_targets(replace(config, keys="positions"))
    assert "as positions in the listing" in caplog.text and "from blue/000.png to" in caplog.text
    layout, reader = ReleasedLogits(tmp_path / "released", NUM_CLASSES), TargetReader(config.out)
    records = layout.read(0, np.array([layout.keys(0)["17"]]))
    assert seed_of_view(reader, "green/001.png", 0) == records.view_seeds[0]


@pytest.mark.parametrize(("listing", "fifth"), [("folder", "c/x_2.png"), ("tar", "c/x_5.png")])
def test_a_tar_is_listed_otherwise_so_which_it_was_has_to_be_said(tmp_path, listing, fifth):
    images = tmp_path / "images"
    draw_unlabelled(images / "c", count=13)
    for number in range(13):
        (images / "c" / f"{number:03}.png").rename(images / "c" / f"x_{number}.png")
    keys = [str(position) for position in range(13)]
    write_released(tmp_path / "r", keys, num_epochs=1, num_classes=NUM_CLASSES, num_kept=NUM_KEPT)
    config = config_of(tmp_path / "r", tmp_path / "store", images, keys="positions")
    with pytest.raises(UserError, match=r"Image 2 is c/x_10.png .* folder, and c/x_2.png .* tar"):
        convert_targets(config)
    assert not (tmp_path / "store").exists()
    said = report(convert_targets(replace(config, listing=listing)))
    assert "mixup or cutmix" in said
    layout, reader = ReleasedLogits(tmp_path / "r", NUM_CLASSES), TargetReader(config.out)
    records = layout.read(0, np.array([layout.keys(0)["5"]]))
    assert seed_of_view(reader, fifth, 0) == records.view_seeds[0]
    with pytest.raises(UserError, match="no effect without --keys positions"):
        check(replace(config, keys=None, listing=listing))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": ""}, "A released set and a store are needed"),
        ({"source": "nowhere/at/all"}, "limbeck convert-targets: .* does not exist"),
        ({"num_classes": None}, "does not tell how many classes"),
        ({"data": DataOptions()}, "No images are named"),
    ],
)
def test_what_is_wrong_is_told_before_a_file_is_opened(images, released, values, message):
    with pytest.raises(UserError, match=message):
        check(replace(config_of(released, "store", images), **values))


def test_an_option_of_training_is_refused(images, released):
    data = DataOptions(root=str(images), holdout_ratio=0.5)
    with pytest.raises(UserError, match="data.holdout_ratio has no effect on a conversion"):
        check(config_of(released, "store", images, data=data))


def training(images, out, store, **changes):
    config = distill_config(images, out, "unused")
    values = {"teacher": TeacherOptions(), "method": "sparse-logit"}
    targets = replace(config.targets, source=str(store))
    default = type(config)()
    values |= {"targets": targets, "relation": default.relation}
    return replace(config, **values | changes)


def test_a_student_is_trained_from_it(images, store, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "limbeck"):
        folder = distill(training(images, tmp_path / "run", store))
    assert "3 views of each image (the released ones); each is used about 1.33" in caplog.text
    steps, _ = metrics_of(folder)
    losses = [step["losses"]["total"] for step in steps]
    assert all(np.isfinite(losses)) and len(losses) == 8


def test_options_of_views_have_no_effect_and_are_refused(images, store, tmp_path):
    config = training(images, tmp_path / "run", store, crop=CropOptions(scale=(0.5, 1.0)))
    with pytest.raises(UserError, match="scale: no effect with .*released code"):
        distill(config)


def test_another_image_of_that_name_is_refused(images, store, tmp_path):
    changed = tmp_path / "images"
    for number, file in enumerate(sorted(images.rglob("*.png"))):
        copy = changed / file.relative_to(images)
        copy.parent.mkdir(parents=True, exist_ok=True)
        # Those of two names are exchanged, all the way through.
        source = sorted(images.rglob("*.png"))[number ^ 1]
        copy.write_bytes(source.read_bytes())
    data = DataOptions(root=str(changed), holdout_ratio=0, num_workers=0)
    with pytest.raises(UserError, match="has other pixels here"):
        distill(training(changed, tmp_path / "run", store, data=data))
