"""COCO's boxes: ids of any kind, names, files in folders, and what is wrong with them."""

import json

import numpy as np
import pytest

from limbeck.data.scenes.objects.open import open_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.errors import UserError
from tests.data.scenes.objects import sets


def opened(root, **options):
    return open_objects(str(root), ObjectOptions(root=str(root), **options))


@pytest.mark.parametrize("ids", [(1, 2, 3), (0, 1, 2), (5, 17, 90), (10, 9, 8), ("a", "b", "c")])
def test_classes_are_those_of_the_names_whatever_their_ids(ids, tmp_path):
    source = opened(sets.write_coco(tmp_path, ids=ids))
    assert sets.held(source) == sets.EXPECTED
    order = sorted(zip(ids, sets.NAMES, strict=True))
    assert source.classes == tuple(name for _, name in order)


def test_ten_categories_are_never_off_by_one(tmp_path):
    names = [f"n{index}" for index in range(1, 11)]
    categories = [{"id": index, "name": f"n{index}"} for index in range(1, 11)]
    annotations = [
        {"id": k, "image_id": 100, "category_id": k, "bbox": [k, k, 5, 5]} for k in range(1, 11)
    ]
    sets.write_coco(tmp_path, categories=categories, annotations=annotations)
    source = opened(tmp_path)
    assert source.classes == tuple(names)
    found = source.objects(0)
    assert found.classes.tolist() == list(range(10)) and found.boxes[:, 0].tolist()[0] == 1


def test_negatives_are_kept_and_counted(tmp_path, caplog):
    caplog.set_level("INFO", "limbeck")
    source = opened(sets.write_coco(tmp_path))
    assert len(source) == 3 and len(source.objects(1).classes) == 0
    assert "3 images with 3 objects, 1 of them without any" in caplog.text
    assert "1 image (b.jpg) without objects" in caplog.text


def test_a_parent_without_objects_is_no_class(tmp_path):
    categories = [{"id": 0, "name": "animals", "supercategory": "none"}] + [
        {"id": index + 1, "name": name, "supercategory": "animals"}
        for index, name in enumerate(sets.NAMES)
    ]
    root = sets.write_coco(
        tmp_path, "train/_annotations.coco.json", ids=(1, 2, 3), categories=categories,
        folder="train/",
    )  # fmt: skip
    assert opened(root).classes == sets.NAMES


def test_what_is_wrong_is_named_and_left_out(tmp_path):
    sets.write_coco(tmp_path)
    content = sets.coco()
    new = [
        {"image_id": 100, "category_id": 7, "bbox": [5, 5, 0, 9]},
        {"image_id": 100, "category_id": 7, "bbox": [70, 5, 9, 9]},
        {"image_id": 100, "category_id": 7, "bbox": [50, 30, 30, 5]},
        {"image_id": 100, "category_id": 7},
        {"image_id": 100, "category_id": 7, "segmentation": [[]]},
        {"image_id": 999, "category_id": 7, "bbox": [1, 1, 5, 5]},
    ]
    content["annotations"] += new
    content["images"].append({"id": 5, "file_name": "gone.jpg", "height": 4, "width": 4})
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    source = opened(tmp_path)
    said = dict(source.problems) | {reason: key for key, reason in source.problems}
    assert said["gone.jpg"] == "its file is not there"
    for reason in (
        "1 boxes without area are left out",
        "1 boxes outside it are left out",
        "a box that stands out of it is cut",
    ):
        assert said[reason] == "a.jpg"
    assert "annotations of 1 images that it does not list are left out" in said
    assert sets.held(source)["a.jpg"][2:] == [("cat", (50.0, 30.0, 60.0, 35.0))]
    with pytest.raises(UserError, match="can't be used: of .*; repair or remove them"):
        opened(tmp_path, broken="refuse")


def test_doubles_and_unknown_categories_are_refused(tmp_path):
    sets.write_coco(tmp_path)
    content = sets.coco()
    content["images"].append(content["images"][0] | {"file_name": "b.jpg"})
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="two images of the id 100"):
        opened(tmp_path)
    content = sets.coco()
    content["annotations"][0]["category_id"] = 55
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="the category 55, which it does not list"):
        opened(tmp_path)


def test_an_outline_alone_says_the_box(tmp_path):
    outline = [[4, 4, 20, 4, 20, 30, 4, 30]]
    annotations = [{"image_id": 100, "category_id": 7, "segmentation": outline, "area": 11.0}]
    source = opened(sets.write_coco(tmp_path, annotations=annotations))
    found = source.objects(0)
    assert source.has_shapes and found.shapes == (outline,) and found.areas.tolist() == [11.0]
    assert np.array_equal(found.boxes, [[4, 4, 20, 30]])
