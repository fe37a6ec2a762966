import json

import numpy as np
import pytest

from limbeck.data.scenes.coco import find_coco
from limbeck.data.scenes.layout import Place
from limbeck.data.scenes.open import open_scenes
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.source import BadImage
from limbeck.errors import UserError
from tests.data.scenes import sets

BOX = [[1, 1, 5, 1, 5, 5, 1, 5]]
LARGE = [[0, 0, 9, 0, 9, 9, 0, 9]]


def write(root, name="annotations.json", image="x.jpg", **changes):
    content = {
        "images": [{"id": 1, "file_name": image, "height": 16, "width": 24}],
        "annotations": [
            {"image_id": 1, "category_id": 5, "segmentation": BOX},
            {"image_id": 1, "category_id": 3, "segmentation": LARGE},
        ],
        "categories": [{"id": 5, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content | changes))


def found(root, split="train", **options):
    return find_coco(Place(root, SceneOptions(**options), split))


def photo_at(root, *names):
    for name in names:
        sets.save(root / name, sets.images()[0])


def test_the_smaller_lies_over_the_larger(tmp_path):
    photo_at(tmp_path, "x.jpg")
    write(tmp_path)
    coco = found(tmp_path)
    expected = np.zeros((16, 24), np.uint16)
    expected[:9, :9] = 1
    expected[1:5, 1:5] = 2
    assert np.array_equal(coco.masks.read(0).pixels, expected)
    assert coco.table.names == ("background", "cat", "dog")
    assert coco.masks.name(0) == "annotations.json" and "annotations.json" in coco.layout


@pytest.mark.parametrize(
    "place",
    ["x.jpg", "images/x.jpg", "train2017/x.jpg", "deep/er/x.jpg"],
)
def test_images_are_found_where_they_are(place, tmp_path):
    photo_at(tmp_path, place)
    for name, entry in (
        ("annotations/instances_train2017.json", "x.jpg"),
        ("annotations/instances_train2017.json", "C:\\mine\\x.jpg"),
    ):
        write(tmp_path, name, entry)
        coco = found(tmp_path)
        assert coco.images.key(0) == place and not coco.problems
    write(tmp_path, "annotations/instances_train2017.json", "gone.jpg")
    assert found(tmp_path).problems == (("gone.jpg", "its file is not there"),)


def test_splits_by_the_name_of_the_file_or_its_folder(tmp_path):
    photo_at(tmp_path, "train2017/x.jpg", "val2017/x.jpg")
    for split in ("train", "val"):
        write(tmp_path, f"annotations/instances_{split}2017.json")
        write(tmp_path, f"annotations/person_keypoints_{split}2017.json")
    assert found(tmp_path).images.key(0) == "train2017/x.jpg"
    coco = found(tmp_path, "validation")
    assert coco.images.key(0) == "val2017/x.jpg" and len(coco.images) == 1
    assert coco.splits == ("train", "validation")


def test_roboflows_folders_and_parent_category(tmp_path):
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 5, "name": "dog", "supercategory": "pets"},
        {"id": 3, "name": "cat", "supercategory": "pets"},
    ]
    for split in ("train", "valid"):
        photo_at(tmp_path, f"{split}/x.jpg")
        write(tmp_path, f"{split}/_annotations.coco.json", categories=categories)
    coco = found(tmp_path, "validation")
    assert coco.images.key(0) == "valid/x.jpg"
    assert coco.table.names == ("background", "cat", "dog")


def test_images_without_annotations_are_background(tmp_path):
    photo_at(tmp_path, "x.jpg", "y.jpg")
    both = [
        {"id": number, "file_name": name, "height": 16, "width": 24}
        for number, name in enumerate(("y.jpg", "x.jpg"))
    ]
    write(tmp_path, images=both)
    coco = found(tmp_path)
    assert not coco.masks.read(0).pixels.any() and coco.masks.read(1).pixels.any()
    assert "1 image (y.jpg) without annotations: background alone." in coco.notes


def test_boxes_are_no_masks(tmp_path):
    photo_at(tmp_path, "x.jpg")
    boxes = [{"image_id": 1, "category_id": 5, "bbox": [1, 1, 4, 4], "segmentation": []}]
    write(tmp_path, annotations=boxes)
    assert found(tmp_path) is None
    shape = {"image_id": 1, "category_id": 3, "segmentation": BOX}
    write(tmp_path, annotations=[*boxes, shape])
    assert "1 annotations without an outline (boxes alone) are left out." in found(tmp_path).notes
    (tmp_path / "annotations.json").write_text('{"shapes": []}')
    assert found(tmp_path) is None


def test_what_is_wrong_is_named(tmp_path):
    photo_at(tmp_path, "x.jpg")
    write(tmp_path, annotations=[{"image_id": 1, "category_id": 9, "segmentation": BOX}])
    with pytest.raises(UserError, match="annotations of the category 9, which it does not list"):
        found(tmp_path)
    write(tmp_path, annotations=[{"image_id": 1, "category_id": 5, "segmentation": "x"}])
    with pytest.raises(UserError, match=r"annotations\.json: the entry 'annotations\.0"):
        found(tmp_path)
    write(tmp_path, images=[{"id": 1, "file_name": "x.jpg"}])
    assert found(tmp_path).problems == (("x.jpg", "its size in annotations.json is 0 x 0"),)
    runs = {"counts": [5], "size": [2, 3]}
    write(tmp_path, annotations=[{"image_id": 1, "category_id": 5, "segmentation": runs}])
    with pytest.raises(BadImage, match=r"its annotation is of \[3, 2\] pixels, its image of"):
        found(tmp_path).masks.read(0)
    write(tmp_path)
    write(tmp_path, "again.json")
    with pytest.raises(UserError, match=r"x\.jpg is listed by several JSON files"):
        found(tmp_path)


def test_names_that_forget_the_background_are_refused(tmp_path):
    root = str(sets.coco(tmp_path, sets.outlines))
    names = ("none", "street", "vehicle")
    assert open_scenes(root, SceneOptions(class_names=names)).classes == names
    with pytest.raises(UserError, match="4 of 4 masks don't fit"):
        open_scenes(root, SceneOptions(class_names=names[1:]))
