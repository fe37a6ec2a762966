import json
import logging
import pickle

import numpy as np
import pytest
from PIL import Image, ImageOps

from limbeck.data.decode import ORIENTATION_TAG
from limbeck.data.scenes.objects.open import open_both_objects, open_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.data.source import BadImage
from limbeck.errors import UserError
from tests.data.scenes.objects import sets
from tests.data.scenes.sets import NAMES, SIZES


def opened(root, **options):
    return open_objects(str(root), ObjectOptions(root=str(root), **options))


def assert_is_the_set(found, classes=sets.CLASSES):
    assert found.classes == classes
    stems = [found.key(index).rpartition("/")[2].rpartition(".")[0] for index in range(len(found))]
    assert sorted(stems) == NAMES
    for index, stem in enumerate(stems):
        place = NAMES.index(stem)
        wanted = sets.truth(classes)[place]
        image, objects = found.read_objects(index)
        assert image.shape[:2] == SIZES[place][::-1]
        np.testing.assert_allclose(objects.boxes, wanted.boxes, atol=1e-9)
        np.testing.assert_allclose(objects.areas, wanted.areas, atol=1e-9)
        assert objects.classes.tolist() == wanted.classes.tolist()
        assert objects.is_crowd.tolist() == wanted.is_crowd.tolist()
        assert objects.shapes == wanted.shapes


@pytest.mark.parametrize("write", sets.LAYOUTS.values(), ids=sets.LAYOUTS)
def test_every_layout_is_recognised_and_says_the_same(write, tmp_path):
    assert_is_the_set(pickle.loads(pickle.dumps(opened(write(tmp_path)))))


@pytest.mark.parametrize("has_names", [True, False])
@pytest.mark.parametrize("is_nested", [True, False])
def test_tables_say_the_same(is_nested, has_names, tmp_path):
    names = () if has_names else sets.CLASSES
    root = sets.table(tmp_path / "t", is_nested, has_names)
    pyarrow = pytest.importorskip("pyarrow.parquet")
    assert pyarrow.read_table(root / "train.parquet").num_rows == 4
    found = opened(root, box_format="xyxy", class_names=names)
    assert found.classes == sets.CLASSES
    for index, wanted in enumerate(sets.truth()):
        np.testing.assert_array_equal(found.objects(index).boxes, wanted.boxes)
        np.testing.assert_array_equal(found.objects(index).classes, wanted.classes)


@pytest.mark.parametrize(
    "ids",
    [(1, 2, 3), (0, 1, 2), (3, 18, 1000), (90, 91, 92), ("a", "b", "c")],
    ids=["from 1", "from 0", "sparse", "COCO's", "words"],
)
def test_no_class_is_off_by_one_whatever_the_ids(ids, tmp_path):
    """Complaints 1 and 2."""
    assert_is_the_set(opened(sets.coco(tmp_path, ids=ids)))


def test_ten_classes_of_ids_from_one_keep_their_names(tmp_path):
    names = [f"class {place}" for place in range(10)]
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(names)]
    boxes = [
        {"image_id": 0, "category_id": place + 1, "bbox": [place, 0, 2, 2]} for place in range(10)
    ]
    found = opened(sets.coco(tmp_path, categories=categories, annotations=boxes))
    objects = found.objects(0)
    said = {found.classes[c]: box[0] for c, box in zip(objects.classes, objects.boxes, strict=True)}
    assert said == {name: place for place, name in enumerate(names)}


def test_classes_of_91_ids_and_of_80_are_matched_by_name(tmp_path):
    """Complaint 3: the order of the ids to score on is another one, some are missing."""
    train = sets.coco(tmp_path / "train", ids=(3, 18, 90))
    held_out = sets.coco(tmp_path / "held", ids=(2, 1, 0))
    options = ObjectOptions(root=str(train), eval_root=str(held_out))
    first, second = open_both_objects(options)
    assert open_objects(str(held_out), options).classes == ("person", "dog", "car")
    assert_is_the_set(first)
    assert_is_the_set(second)


def test_a_class_that_training_lacks_is_named(tmp_path):
    train = sets.coco(tmp_path / "train")
    other = sets.coco(tmp_path / "other")
    file = other / "instances_default.json"
    file.write_text(file.read_text().replace('"dog"', '"cow"'))
    with pytest.raises(UserError, match="has no 'cow'.*--data.merge ignore=cow"):
        open_both_objects(ObjectOptions(root=str(train), eval_root=str(other)))


def test_negatives_are_counted_and_what_was_recognised_is_told(tmp_path, caplog):
    """Complaint 4."""
    caplog.set_level(logging.INFO)
    opened(sets.coco(tmp_path))
    text = caplog.text
    assert "4 images with 6 objects, 1 of them without any" in text
    assert "--data.layout" in text and "images/a1.jpg with 2" in text
    assert "3 classes: car 2, dog 1, person 3." in text


def test_merged_and_ignored_classes(tmp_path):
    found = opened(sets.coco(tmp_path), merge=("animal=dog,person", "ignore=car"))
    assert found.classes == ("animal",)
    numbers = [found.objects(index).classes.tolist() for index in range(4)]
    assert numbers == [[0], [0], [], [0, 0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"merge": ("x=cow",)}, "no class 'cow'"),
        ({"merge": ("cow",)}, "not of the form"),
        ({"class_names": ("a", "b", "c")}, "names its own"),
        ({"box_format": "xyxy"}, "is for tables"),
        ({"layout": "voc"}, "no boxes in the layout voc"),
    ],
)
def test_options_that_do_not_fit(options, words, tmp_path):
    with pytest.raises(UserError, match=words):
        opened(sets.coco(tmp_path), **options)


def test_what_can_not_be_used_is_named_or_refused(tmp_path, caplog):
    root = sets.coco(tmp_path)
    (root / "images" / "b2.jpg").unlink()
    found = opened(root)
    assert found.problems == (("b2.jpg", "its file is not there"),)
    assert "b2.jpg: its file is not there." in caplog.text
    with pytest.raises(UserError, match="of b2.jpg its file is not there; repair"):
        opened(root, broken="refuse")


@pytest.mark.parametrize("what", ["nothing", "no objects"])
def test_places_without_boxes(what, tmp_path):
    sets.write_images(tmp_path)
    if what == "no objects":
        (tmp_path / "x.json").write_text(json.dumps(sets.coco_json(annotations=[])))
    with pytest.raises(UserError, match="There are no boxes|has an object"):
        opened(tmp_path)


def test_splits_by_the_files_names(tmp_path):
    for split in ("train", "val"):
        sets.write_images(tmp_path, split + "/{}.jpg")
        (tmp_path / f"instances_{split}2017.json").write_text(json.dumps(sets.coco_json()))
    train, held_out = open_both_objects(ObjectOptions(root=str(tmp_path)))
    assert train.key(0) == "train/a1.jpg" and held_out.key(0) == "val/a1.jpg"
    assert_is_the_set(train)
    assert_is_the_set(held_out)


def test_one_place_is_parted(tmp_path):
    train, held_out = open_both_objects(
        ObjectOptions(root=str(sets.coco(tmp_path)), holdout_ratio=0.5)
    )
    keys = [source.key(index) for source in (train, held_out) for index in range(len(source))]
    assert sorted(keys) == [f"images/{name}.jpg" for name in NAMES] and len(held_out)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("is_upright", [True, False])
def test_boxes_lie_on_the_upright_photo(orientation, is_upright, tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)  # as stored
    pixels[5:15, 40:56] = 255
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    if is_upright or orientation < 5:  # whose size does not tell
        with Image.open(tmp_path / "a.png") as image:
            pixels = np.array(ImageOps.exif_transpose(image))
    rows, columns = (np.flatnonzero(pixels[..., 0].any(axis)).tolist() for axis in (1, 0))
    x, y, w, h = columns[0], rows[0], len(columns), len(rows)
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    height, width = pixels.shape[:2]
    images = [{"id": 1, "file_name": "a.png", "height": height, "width": width}]
    boxes = [
        {"image_id": 1, "category_id": 1, "bbox": [x, y, w, h], "segmentation": outline},
    ]
    content = sets.coco_json(images=images, annotations=boxes)
    (tmp_path / "x.json").write_text(json.dumps(content))
    image, found = opened(tmp_path).read_objects(0)
    left, top, right, bottom = found.boxes[0].astype(int)
    assert (image[top:bottom, left:right] == 255).all() and image.sum() == 160 * 3 * 255
    points = np.reshape(found.shapes[0][0], (-1, 2))
    assert np.array_equal([*points.min(0), *points.max(0)], found.boxes[0])


def test_an_image_of_another_size_is_bad(tmp_path):
    root = sets.coco(tmp_path)
    Image.new("RGB", (44, 33)).save(root / "images" / "a1.jpg")
    words = "its annotation is of 24 x 16 pixels, the image has 44 x 33"
    with pytest.raises(BadImage, match=words):
        opened(root).read_objects(0)
