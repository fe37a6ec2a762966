import math

import pytest

from limbeck.data.scenes.objects.gather import Packed, RawImage, RawObject, checked, extent, merged
from limbeck.errors import UserError


def test_rounding_is_cut_without_a_word():
    image = RawImage("a", (10, 20), [RawObject("x", (-0.4, 0, 20.5, 10))])
    (kept,), problems = checked([image])
    assert kept.objects[0].box == (0, 0, 20, 10) and not problems


def test_boxes_of_no_numbers():
    image = RawImage("a", (10, 20), [RawObject("x", (0, 0, math.nan, 10))])
    assert checked([image])[1] == [("a", "1 box of no numbers left out")]


def test_a_class_that_is_ignored_teaches_no_other():
    names, value_of = merged(("a", "b", "c"), ("ignore=a",))
    assert names == ("b", "c") and value_of == {"b": 0, "c": 1}
    objects = [RawObject(name, (0, 0, 1, 1)) for name in "abc"]
    images = [RawImage("x", (9, 9), objects), RawImage("y", (9, 9), objects[:1])]
    packed = Packed(images, value_of)
    assert packed.of(0).classes.tolist() == [0, 1] and packed.of(1).classes.tolist() == []


def test_merges_keep_the_order_of_the_first():
    assert merged(("a", "b", "c"), ("z=c,a",)) == (("z", "b"), {"a": 0, "b": 1, "c": 0})
    with pytest.raises(UserError, match="no class 'd'"):
        merged(("a",), ("z=d",))


def test_extents():
    assert extent([[1, 2, 5, 3, 4, 9], [0, 5, 1, 5, 1, 6]]) == (0, 2, 5, 9)
    assert extent({"counts": [9, 2, 7], "size": [6, 3]}) == (1, 3, 2, 5)
    assert extent({"counts": [9], "size": [6, 3]}) == (0, 0, 0, 0)
