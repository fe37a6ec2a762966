"""What is kept of objects: merges, and one check for all readers."""

import numpy as np
import pytest

from limbeck.data.scenes.objects.gather import Packed, RawImage, RawObject, checked, merged
from limbeck.errors import UserError


def image(*boxes, key="x"):
    return RawImage(key, (10, 20), [RawObject("a", box) for box in boxes])


def test_merges():
    classes, value_of = merged(("a", "b", "c"), ["both=a,c"])
    assert classes == ("both", "b") and value_of == {"a": 0, "b": 1, "c": 0}
    classes, value_of = merged(("a", "b", "c"), ["ignore=a"])
    assert classes == ("b", "c") and value_of == {"b": 0, "c": 1}
    with pytest.raises(UserError, match="there is no class 'd'. There are a, b, c"):
        merged(("a", "b", "c"), ["x=d"])


def test_sound_boxes_stay_as_they_are_and_others_are_named():
    nan = float("nan")
    images, problems = checked([
        image((0, 0, 20, 10), (-0.5, 0, 5, 5)),
        image((0, 0, nan, 5), (5, 5, 5, 8), (9, 9, 7, 12), (21, 0, 30, 5), key="y"),
    ])  # fmt: skip
    assert [each.box for each in images[0].objects] == [(0, 0, 20, 10), (0, 0, 5, 5)]
    assert images[1].objects == []
    assert problems == [
        ("y", "1 boxes that are no numbers are left out"),
        ("y", "2 boxes without area are left out"),
        ("y", "1 boxes outside it are left out"),
    ]


def test_objects_are_packed_without_python_objects():
    rng = np.random.default_rng(0)
    boxes = rng.integers(0, 5, (3000, 4)) + (0, 0, 5, 5)
    images = [image(*map(tuple, boxes[k : k + 10].tolist())) for k in range(0, 3000, 10)]
    packed = Packed(images, {"a": 0})
    assert np.array_equal(packed.of(7).boxes, boxes[70:80])
    assert packed.of(7).areas.tolist() == (boxes[70:80, 2:] - boxes[70:80, :2]).prod(1).tolist()
    arrays = [value for value in vars(packed).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) < 3000 * 64 and len(arrays) == 6
    assert not any(isinstance(value, list | dict) for value in vars(packed).values())


def test_shapes_come_back():
    shapes = [[[1, 1, 3, 1, 3, 3]], {"counts": [1, 2], "size": [10, 20]}, None]
    objects = [RawObject("a", (1, 1, 3, 3), shape) for shape in shapes]
    packed = Packed([RawImage("x", (10, 20), objects)], {"a": 0})
    assert list(packed.of(0).shapes) == shapes and packed.has_shapes
