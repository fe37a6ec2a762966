"""Whether a store fits a run: each way in which it does not is told, with the remedy."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.options import CropOptions, DataOptions, StoreOptions, TargetsOptions
from limbeck.data.skipped import SkippedLog
from limbeck.data.target_store import place
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.methods.options import RelationOptions, SparseLogitOptions
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.run.images import open_images
from limbeck.recipes.targets import reading as targets
from limbeck.recipes.targets.reading import check_recipe, open_networks, open_store
from limbeck.recipes.targets.store_targets import StoreTargetsConfig, store_targets
from limbeck.recipes.train.distill import distill
from limbeck.recipes.train.pretraining import plan_pretraining
from tests.data.target_store.stores import KEYS, assert_holds, write_store
from tests.recipes.runs import STUDENT_SHAPE, distill_config, draw_classes, snapshot

PLAIN = SparseLogitOptions(rand_augment="", erase_prob=0.0)


def store_config(images, out, classifier, **changes):
    values = {
        "out": str(out),
        "sparse_logit": PLAIN,
        "student": STUDENT_SHAPE,
        "teacher": TeacherOptions(source=str(classifier), precision="fp32"),
        "data": DataOptions(root=str(images), holdout_ratio=0.25, num_workers=0),
        "device": "cpu",
        "store": StoreOptions(num_views=4, batch_size=8),
    }
    return StoreTargetsConfig(**values | changes)


def train_config(images, out, store, **changes):
    values = {
        "method": "sparse-logit",
        "sparse_logit": PLAIN,
        "teacher": TeacherOptions(),
        "targets": TargetsOptions(source=str(store)),
        "relation": RelationOptions(),
    }
    return distill_config(images, out, "", **values | changes)


@pytest.fixture(scope="module")
def store(images, classifier, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "targets"
    stored = store_targets(store_config(images, out, classifier))
    assert (stored.num_images, stored.num_new, stored.skipped) == (48, 48, {})
    return out


def test_stored_again_nothing_changes(store, images, classifier):
    before = snapshot(store)
    assert store_targets(store_config(images, store, classifier)).num_new == 0
    assert snapshot(store) == before


def refused(config):
    with pytest.raises(UserError) as error:
        distill(config)
    assert not config.out.exists()  # nothing was begun
    return str(error.value)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"crop": CropOptions(scale=(0.5, 1.0))}, "views.scale is [0.5, 1.0] here"),
        (
            {"sparse_logit": SparseLogitOptions(rand_augment="", erase_prob=0.1)},
            "views.erase_prob is 0.1 here and 0.0 in the store",
        ),
        (
            {"student": StudentOptions(name="vit_tiny", img_size=64, patch_size=8)},
            "img_size is 64 here and 32 in the store",
        ),
        ({"method": "relation", "sparse_logit": SparseLogitOptions()}, "class probabilities"),
        (
            {
                "method": "relation",
                "sparse_logit": SparseLogitOptions(),
                "student": StudentOptions(
                    name="tiny_vit_5m:img_size=32:embed_dims=12-12-18-30:depths=1-1-1-1:head_dim=6"
                ),
            },
            "class probabilities",
        ),
    ],
    ids=["crop", "erasing", "size", "method", "method, before heads that do not fit"],
)
def test_other_views_or_another_method(store, images, tmp_path, changes, said):
    assert said in refused(train_config(images, tmp_path / "run", store, **changes))


def test_images_without_targets_are_named(store, tmp_path):
    more = draw_classes(tmp_path / "more", num_per_class=20)
    said = refused(train_config(more, tmp_path / "run", store))
    assert said.startswith("11 of 47 images have no stored targets: blue/017.png, blue/018.png, ")
    assert "store-targets --resume" in said


def test_another_data_set_with_the_same_names(store, images, tmp_path):
    other = tmp_path / "other"
    for file in sorted(images.rglob("*.png")):
        target = other / file.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - np.array(Image.open(file))).save(target)
    said = refused(train_config(other, tmp_path / "run", store))
    assert "has other pixels here" in said and "another image of that name" in said


def test_a_library_whose_pixels_differ_is_named(store, images, tmp_path, monkeypatch):
    manifest = json.loads((store / "manifest.json").read_text())
    monkeypatch.setattr(
        "limbeck.recipes.targets.reading.versions",
        lambda: manifest["versions"] | {"pillow": "99.1"},
    )
    monkeypatch.setattr(
        "limbeck.recipes.targets.reading.view_fingerprint", lambda *args, **kwargs: "0" * 32
    )
    said = refused(train_config(images, tmp_path / "run", store))
    assert f"pillow {manifest['versions']['pillow']} then, 99.1 now" in said


def test_images_without_any_fingerprint_are_refused(store, images, tmp_path):
    record = json.loads((store / "part-00000.json").read_text())
    marked = {each["key"] for each in record["fingerprints"]}
    few, number = tmp_path / "few", 0
    for file in sorted(images.rglob("*.png")):
        key = file.relative_to(images).as_posix()
        if key not in marked:  # another image of that name: nothing would tell
            (few / key).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 36)).save(few / key)
            number += 1
    assert number > 4
    data = DataOptions(root=str(few), holdout_ratio=0.25, num_workers=0)
    config = train_config(images, tmp_path / "run", store, data=data)
    config = replace(config, train=replace(config.train, global_batch_size=2))
    said = refused(config)
    assert said.startswith("The store has fingerprints of none of these images")
    assert any(key in said for key in marked)


def test_fingerprints_of_held_out_images_are_compared_too(store, images, tmp_path, monkeypatch):
    seen = []

    def compare(reader, source, *rest):
        seen.append({source.key(index) for index in range(len(source))})
        raise UserError("seen")

    monkeypatch.setattr(targets, "check_pixels", compare)
    assert refused(train_config(images, tmp_path / "run", store)) == "seen"
    assert len(seen[0]) == 48


def test_a_teacher_that_was_moved_is_the_same(store, images, classifier, tmp_path):
    shutil.copytree(classifier, tmp_path / "moved")
    before = snapshot(store)
    assert store_targets(store_config(images, store, tmp_path / "moved")).num_new == 0
    assert snapshot(store) == before
    other = json.loads((store / "manifest.json").read_text())["teacher"]["facts"]["origin"]
    assert str(classifier) in other["source"]  # still told


def test_what_does_not_go_with_a_store_is_not_filled_in(images, classifier, tmp_path):
    photos, out = draw_classes(tmp_path / "photos", num_per_class=4), tmp_path / "targets"
    store_targets(store_config(photos, out, classifier))
    before = snapshot(out)
    for file in sorted(photos.rglob("*.png")):
        Image.new("RGB", (40, 36)).save(file)
    Image.new("RGB", (40, 36)).save(photos / "red" / "new.png")
    with pytest.raises(UserError, match="another image of that name, or another library"):
        store_targets(store_config(photos, out, classifier, resume=True))
    assert snapshot(out) == before


def test_a_disk_that_is_too_small_is_told_before_the_start(
    images, classifier, tmp_path, monkeypatch
):
    monkeypatch.setattr(place.shutil, "disk_usage", lambda path: type("Free", (), {"free": 10}))
    with pytest.raises(UserError, match=r"The targets need 0.00 GB and .* choose another --out"):
        store_targets(store_config(images, tmp_path / "store", classifier))
    assert not list((tmp_path / "store").glob("part-*"))


def test_images_added_later_are_filled_in(images, classifier, tmp_path):
    photos, out = draw_classes(tmp_path / "photos", num_per_class=8), tmp_path / "targets"
    store_targets(store_config(photos, out, classifier))
    before = snapshot(out)
    for index in range(3):
        file = photos / "red" / f"new{index}.png"
        file.write_bytes((photos / "blue" / f"00{index}.png").read_bytes())
    with pytest.raises(UserError, match="3 of 27 images have no targets .* pass --resume"):
        store_targets(store_config(photos, out, classifier))
    assert store_targets(store_config(photos, out, classifier, resume=True)).num_new == 3
    after = snapshot(out)
    assert {name: after[name] for name in before} == before  # the others are as they were
    (photos / "green" / "000.png").unlink()
    run = distill(train_config(photos, tmp_path / "run", out))
    assert (run / "student.safetensors").exists()


def test_another_store_is_not_overwritten(store, images, classifier):
    before = snapshot(store)
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        store_targets(store_config(images, store, classifier, seed=1))
    assert snapshot(store) == before


def test_all_differences_are_named():
    with pytest.raises(UserError, match=r"a\.b is 2 here and 1 in the store; c is None here"):
        check_recipe({"a": {"b": 1}, "c": 3}, {"a": {"b": 2}})
    check_recipe({"a": [1, 2]}, {"a": (1, 2)})


def test_each_process_of_a_machine_compares_its_share(tmp_path, monkeypatch):
    write_store(tmp_path)
    file = tmp_path / "part-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    options = TargetsOptions(source=str(tmp_path))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")  # of parts 0 and 2
    assert_holds(open_store(options), KEYS[:3])
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="part-00001.safetensors is not what was written"):
        open_store(options)


def test_what_is_wrong_on_one_process_is_told_on_all(tmp_path, monkeypatch):
    write_store(tmp_path)
    # Another rank's failure, as the group would bring it.
    monkeypatch.setattr(targets, "gather", lambda failure: [failure, UserError("of rank 1")])
    with pytest.raises(UserError, match="of rank 1"):
        open_store(TargetsOptions(source=str(tmp_path)))


def test_a_store_at_an_address_is_copied_to_the_cache(tmp_path):
    address = write_store(f"memory://{tmp_path}/store")
    reader = open_store(TargetsOptions(source=address, cache=str(tmp_path / "copies")))
    assert_holds(reader, KEYS)
    assert len(list((tmp_path / "copies").glob("*/part-*.safetensors"))) == 4


def test_erased_boxes_hold_what_the_teacher_saw_however_the_student_normalises(
    images, classifier, tmp_path
):
    erasing = SparseLogitOptions(rand_augment="", erase_prob=1.0)
    out = tmp_path / "targets"
    few = StoreOptions(num_views=1, batch_size=16)
    store_targets(store_config(images, out, classifier, sparse_logit=erasing, store=few))
    config = train_config(images, tmp_path / "run", out, sparse_logit=erasing)
    opened, nets = open_images(config.data), open_networks(config, torch.device("cpu"))
    own = nets.student.facts
    batches = []
    for mean, std in ((own.mean, own.std), ((0.5,) * 3, (0.1,) * 3)):
        nets.student.facts = replace(own, mean=mean, std=std)
        plan = plan_pretraining(config, nets, opened, Ranks())
        batches.append(next(plan.stream(config, SkippedLog(None, 36, 0.0), 0, 1)))
    assert torch.equal(batches[0].images, batches[1].images)
    assert batches[0].images.min() < 0  # noise that leaves 0..1
