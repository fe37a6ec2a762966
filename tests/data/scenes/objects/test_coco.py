import json

import numpy as np
import pytest

from limbeck.errors import UserError
from tests.data.scenes.objects import sets
from tests.data.scenes.objects.test_open import assert_is_the_set, opened
from tests.data.scenes.sets import compressed, outlines, run_lengths

FIRST = {"image_id": 0, "category_id": 1}


def with_(root, *annotations, **changes):
    return opened(sets.coco(root, annotations=[FIRST | each for each in annotations], **changes))


@pytest.mark.parametrize("image_id", [str, lambda number: f"x{number}"], ids=["digits", "words"])
@pytest.mark.parametrize("prefix", ["", "images/", "D:\\mine\\images\\", "/home/ann/"])
def test_ids_in_words_and_names_with_folders(image_id, prefix, tmp_path):
    assert_is_the_set(opened(sets.coco(tmp_path, image_id=image_id, prefix=prefix)))


def test_one_file_may_be_named(tmp_path):
    assert_is_the_set(opened(sets.coco(tmp_path) / "instances_default.json"))


@pytest.mark.parametrize("draw", [outlines, run_lengths, compressed])
@pytest.mark.parametrize("has_box", [True, False])
def test_shapes_are_kept_and_give_the_box_that_is_missing(draw, has_box, tmp_path):
    inside = np.zeros((16, 24), bool)
    inside[3:9, 4:12] = True
    box = {"bbox": [4, 3, 8, 6]} if has_box else {}
    found = with_(tmp_path, {"segmentation": draw(inside), "iscrowd": 1} | box)
    objects = found.objects(0)
    assert objects.boxes.tolist() == [[4, 3, 12, 9]] and objects.is_crowd.tolist() == [True]
    assert objects.shapes == (draw(inside),) and found.has_shapes
    assert objects.areas.tolist() == [48]


def test_the_area_is_as_stated_or_of_the_outline(tmp_path):
    triangle = [[0, 0, 8, 0, 8, 6]]
    found = with_(
        tmp_path,
        {"bbox": [0, 0, 8, 6], "area": 5.5},
        {"bbox": [0, 0, 8, 6], "category_id": 2, "segmentation": triangle},
        {"bbox": [0, 0, 8, 6], "category_id": 3, "segmentation": [[1, 2], []]},
    )
    assert found.objects(0).areas.tolist() == [5.5, 24, 48]


def test_what_is_broken_is_named_and_left_out(tmp_path):
    content = sets.coco_json()
    images = content["images"] + [
        {"id": 99, "file_name": "gone.jpg", "width": 9, "height": 9},
        {"id": 21, "file_name": "b2.jpg", "width": 20, "height": 20},  # the id of d4
        {"id": 5, "file_name": "c3.jpg", "width": 16, "height": 24},  # once more
    ]
    found = with_(
        tmp_path,
        {"bbox": [0, 0, 8, 6]}, {"bbox": [0, 0, 8, 6]}, {"bbox": [3, 3, 0, 6]},
        {"bbox": [30, 3, 9, 6]}, {"bbox": [20, 3, 9, 6]}, {"category_id": 77}, {"image_id": 55},
        {}, {"image_id": 5, "bbox": [1, 1, 2, 2]}, {"image_id": 21, "bbox": [1, 1, 2, 2]},
        images=images,
    )  # fmt: skip
    keys = [found.key(index) for index in range(len(found))]
    assert keys == ["images/a1.jpg", "images/c3.jpg"]
    assert found.objects(0).boxes.tolist() == [[0, 0, 8, 6], [20, 3, 24, 9]]
    assert found.objects(1).boxes.tolist() == [[1, 1, 3, 3]]
    file = "instances_default.json"
    assert set(found.problems) == {
        (file, "1 annotation of the category 77, which it does not list, left out"),
        (file, "1 annotation of images that it does not list left out"),
        (file, "1 annotation without a box left out"),
        ("gone.jpg", "its file is not there"),
        ("images/c3.jpg", f"it is listed twice in {file}"),
        ("images/d4.jpg", f"its id 21 in {file} is another image's, too"),
        ("images/b2.jpg", f"its id 21 in {file} is another image's, too"),
        ("images/a1.jpg", "1 box that it has twice left out"),
        ("images/a1.jpg", "1 box without area left out"),
        ("images/a1.jpg", "1 box outside it left out"),
        ("images/a1.jpg", "1 box standing out of it cut"),
    }


def test_a_size_that_is_missing_is_the_files(tmp_path):
    images = [{"id": 0, "file_name": "a1.jpg"}, {"id": 1, "file_name": "b2.jpg", "width": None}]
    (tmp_path / "images").mkdir()
    found = with_(tmp_path, {"bbox": [0, 0, 8, 6]}, images=images)
    assert found.packed.sizes.tolist() == [[16, 24], [20, 20]]


def test_a_class_above_the_others_is_one_if_it_is_used(tmp_path):
    root = sets.roboflow_coco(tmp_path)
    file = root / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    assert opened(root).classes == sets.CLASSES
    content["annotations"][0]["category_id"] = 0
    file.write_text(json.dumps(content))
    assert opened(root).classes == ("things", *sets.CLASSES)


def test_an_image_of_two_files(tmp_path):
    root = sets.coco(tmp_path)
    (root / "instances_more.json").write_text((root / "instances_default.json").read_text())
    with pytest.raises(UserError, match=r"a1.jpg is listed by several JSON files"):
        opened(root)
