"""The images of a run: train and held-out share nothing, and classes must agree."""

import json
from dataclasses import replace

import pytest

from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.recipes.run.images import check_holdout, open_images
from tests.recipes.runs import draw_classes, draw_unlabelled


def keys(source):
    return {source.key(index) for index in range(len(source))}


def test_a_slice_is_held_out(images):
    found = open_images(DataOptions(root=str(images), holdout_ratio=0.25))
    assert keys(found.train) | keys(found.holdout) == keys(found.whole)
    assert not keys(found.train) & keys(found.holdout)
    assert 0 < len(found.holdout) < len(found.train)
    assert found.is_labelled
    assert found.lineage == {
        "root": str(images),
        "num_images": 48,
        "num_train": len(found.train),
        "num_holdout": len(found.holdout),
        "classes": ["blue", "green", "red"],
        "fingerprint": found.fingerprint,
    }


def test_the_fingerprint_is_that_of_the_whole(images):
    first = open_images(DataOptions(root=str(images), holdout_ratio=0.25))
    second = open_images(DataOptions(root=str(images), holdout_ratio=0.5))
    other = open_images(DataOptions(root=str(images / "red")))
    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_unlabelled_images(unlabelled):
    assert not open_images(DataOptions(root=str(unlabelled))).is_labelled


def test_named_held_out_images(images, tmp_path):
    test = draw_classes(tmp_path / "test", num_per_class=2)
    found = open_images(DataOptions(root=str(images), eval_root=str(test)))
    assert len(found.train) == 48
    assert len(found.holdout) == 6
    assert found.is_labelled


def test_unlabelled_held_out_images_make_no_labelled_run(images, unlabelled):
    found = open_images(DataOptions(root=str(images), eval_root=str(unlabelled)))
    assert not found.is_labelled


def test_other_classes_are_refused(images, tmp_path):
    test = draw_classes(tmp_path / "test", num_per_class=1)
    (test / "red").rename(test / "rose")
    with pytest.raises(UserError, match=r"different: red, rose\); both need the same class"):
        open_images(DataOptions(root=str(images), eval_root=str(test)))


def test_no_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="There are no images in"):
        open_images(DataOptions(root=str(tmp_path)))


def test_scoring_needs_held_out_images(images):
    check_holdout(open_images(DataOptions(root=str(images), holdout_ratio=0.25)))
    with pytest.raises(UserError, match=r"is held out to score on; raise --data.holdout-ratio"):
        check_holdout(open_images(DataOptions(root=str(images), holdout_ratio=0)))


@pytest.mark.parametrize(("count", "ratio"), [(1, 0.0), (2, 0.99)])
def test_one_image_is_refused(tmp_path, count, ratio):
    folder = draw_unlabelled(tmp_path / "few", count)
    with pytest.raises(UserError, match=r"few has 1 image to train on; that can't teach anything"):
        open_images(DataOptions(root=str(folder), holdout_ratio=ratio))


def test_few_images_are_said(images, caplog):
    open_images(DataOptions(root=str(images), holdout_ratio=0))
    assert "48 training images are few; expect less than from thousands of them." in caplog.text


def test_a_part_of_the_labels(images):
    data = DataOptions(root=str(images), holdout_ratio=0.25)
    whole = open_images(data)
    tenth = open_images(replace(data, label_fraction=0.1))
    third = open_images(replace(data, label_fraction=1 / 3))
    assert keys(tenth.holdout) == keys(whole.holdout)
    assert keys(tenth.train) < keys(third.train) < keys(whole.train)
    assert len(tenth.train) == 3 == len({tenth.train.label(index) for index in range(3)})
    assert keys(open_images(replace(data, label_fraction=0.1, label_seed=1)).train) != keys(
        tenth.train
    )
    assert len({each.fingerprint for each in (whole, tenth, third)}) == 3
    # The images are still known as the same ones.
    assert tenth.lineage["fingerprint"] == whole.lineage["fingerprint"]
    assert tenth.lineage["label_fraction"] == 0.1
    assert tenth.lineage["num_train"] == 3


def test_a_part_of_no_labels_is_refused(unlabelled):
    with pytest.raises(UserError, match="label_fraction is for labelled images, and these have no"):
        open_images(DataOptions(root=str(unlabelled), label_fraction=0.5))


def test_classes_are_matched_by_name_whatever_their_order(images, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    files = sorted((images / "red").iterdir())
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    words = pa.array(["red"] * len(rows)).dictionary_encode()
    names = pa.table({"image": rows, "label": words})
    pyarrow.parquet.write_table(names, tmp_path / "red.parquet")
    with pytest.raises(UserError, match="different: blue, green"):
        open_images(DataOptions(root=str(images), eval_root=str(tmp_path / "red.parquet")))
    rows, words = rows[:3], ["red", "green", "blue"]
    notes = {"info": {"features": {"label": {"_type": "ClassLabel", "names": words}}}}
    names = pa.table({"image": rows, "label": [0, 1, 2]})
    names = names.replace_schema_metadata({"huggingface": json.dumps(notes)})
    pyarrow.parquet.write_table(names, tmp_path / "all.parquet")
    found = open_images(DataOptions(root=str(images), eval_root=str(tmp_path / "all.parquet")))
    assert found.holdout.classes == found.train.classes == ("blue", "green", "red")
    assert [found.holdout.label(index) for index in range(3)] == [2, 1, 0]
