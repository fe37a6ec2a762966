"""Opening images with objects: what is recognised, splits, turned photos, refusals."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from limbeck.data.scenes.objects.open import open_both_objects, open_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.errors import UserError
from tests.data.scenes.objects import sets


def options(root, **changes):
    return ObjectOptions(root=str(root), **changes)


@pytest.mark.parametrize("write", [sets.write_coco, sets.write_yolo, sets.write_voc])
def test_a_layout_is_recognised_and_cheap_to_send(write, tmp_path):
    source = open_objects(str(write(tmp_path)), options(tmp_path))
    again = pickle.loads(pickle.dumps(source))
    assert sets.held(again) == sets.EXPECTED
    image, found = again.read_objects(0)
    assert image.shape == (*sets.SIZE, 3) and len(found.boxes) == 2
    assert again.fingerprint() == source.fingerprint()


def test_a_box_that_moves_changes_the_fingerprint(tmp_path):
    first = open_objects(str(sets.write_coco(tmp_path)), options(tmp_path)).fingerprint()
    content = sets.coco()
    content["annotations"][0]["bbox"][0] += 1
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert open_objects(str(tmp_path), options(tmp_path)).fingerprint() != first


def test_scores_need_the_same_classes(tmp_path):
    sets.write_coco(tmp_path / "a", ids=(1, 2, 3))
    sets.write_coco(tmp_path / "b", ids=(9, 5, 7))  # in another order
    train, other = open_both_objects(options(tmp_path / "a", eval_root=str(tmp_path / "b")))
    assert train.classes == other.classes == sets.NAMES
    assert sets.held(train) == sets.held(other) == sets.EXPECTED
    categories = [{"id": k, "name": name} for k, name in enumerate(("cat", "dog", "yak"))]
    annotations = [{"image_id": 100, "category_id": 2, "bbox": [1, 1, 5, 5]}]
    sets.write_coco(tmp_path / "c", categories=categories, annotations=annotations)
    with pytest.raises(UserError, match="which has no 'yak' .*name them alike"):
        open_both_objects(options(tmp_path / "a", eval_root=str(tmp_path / "c")))


def test_merged_classes_and_a_part_that_is_held_out(tmp_path):
    sets.write_coco(tmp_path)
    changes = {"merge": ("pet=cat,dog", "ignore=emu"), "holdout_ratio": 0.4}
    train, held_out = open_both_objects(options(tmp_path, **changes))
    assert train.classes == ("pet",) and len(train) + len(held_out) == 3
    with pytest.raises(UserError, match="'pet' is not of the form"):
        open_both_objects(options(tmp_path, merge=("pet",)))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("is_upright", [True, False])
def test_boxes_lie_on_the_upright_photo(orientation, is_upright, tmp_path):
    # A white block in a black photo, as it is stored.
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[5:15, 40:56] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    lies = orientation > 4
    sides, box = ((40, 60), [40, 5, 16, 10])
    outline = [[40, 5, 56, 5, 56, 15, 40, 15]]
    if is_upright or not lies:
        # Annotated as it is seen.
        with Image.open(tmp_path / "a.png") as image:
            from PIL.ImageOps import exif_transpose

            seen = np.array(exif_transpose(image))
        rows, columns = (np.flatnonzero(seen[..., 0].any(axis)) for axis in (1, 0))
        box = [columns[0], rows[0], len(columns), len(rows)]
        box = [int(value) for value in box]
        x, y, w, h = box
        outline, sides = [[x, y, x + w, y, x + w, y + h, x, y + h]], seen.shape[:2]
    images = [{"id": 1, "file_name": "a.png", "height": sides[0], "width": sides[1]}]
    annotations = [{"image_id": 1, "category_id": 7, "bbox": box, "segmentation": outline}]
    content = sets.coco(annotations=annotations) | {"images": images}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    image, found = open_objects(str(tmp_path), options(tmp_path)).read_objects(0)
    left, top, right, bottom = found.boxes[0].astype(int)
    assert (image[top:bottom, left:right] == 255).all() and image.sum() == 160 * 3 * 255
    points = np.reshape(found.shapes[0][0], (-1, 2))
    assert np.array_equal([*points.min(0), *points.max(0)], found.boxes[0])


def test_another_size_is_a_bad_image(tmp_path):
    sets.write_coco(tmp_path)
    sets.save(tmp_path / "a.jpg", size=(33, 44))
    from limbeck.data.source import BadImage

    with pytest.raises(
        BadImage, match="its annotation is of 60 x 40 pixels, the image has 44 x 33"
    ):
        open_objects(str(tmp_path), options(tmp_path)).read_objects(0)


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="There is no data"):
        open_objects("", options(""))
    sets.save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="There are no boxes in .*What is recognised: COCO's JSON"):
        open_objects(str(tmp_path), options(tmp_path))
    with pytest.raises(UserError, match="has no boxes in the layout yolo"):
        open_objects(str(tmp_path), options(tmp_path, layout="yolo"))
    sets.write_coco(tmp_path, annotations=[])
    with pytest.raises(UserError, match="No image of .* has an object"):
        open_objects(str(tmp_path), options(tmp_path))
