"""Answers as plain data and as pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from limbeck.errors import NotFiniteError
from limbeck.evaluation.answers import (
    BAR,
    Gallery,
    class_names,
    draw_bars,
    draw_neighbours,
    likeliest,
)


def facts(classes, count):
    return SimpleNamespace(origin={"classes": classes} if classes else {}, num_classes=count)


def test_every_class_has_a_name_of_its_own():
    names = class_names(facts(["crane", "cat", "crane"], 3))
    assert names == ["crane (class 0)", "cat", "crane (class 2)"]
    assert class_names(facts(None, 2)) == ["0", "1"]


def test_the_likeliest_classes_fall():
    logits = torch.tensor([[0.0, np.log(6), np.log(3)], [np.log(8), 0.0, 0.0]])
    first, second = likeliest(logits, ["a", "b", "c"], 2)
    assert list(first) == ["b", "c"] and first == pytest.approx({"b": 0.6, "c": 0.3})
    assert next(iter(second.items())) == ("a", pytest.approx(0.8))
    assert len(likeliest(logits, ["a", "b", "c"], 9)[0]) == 3
    with pytest.raises(NotFiniteError, match="not finite"):
        likeliest(torch.tensor([[0.0, torch.nan]]), ["a", "b"])


def test_the_nearest_of_a_gallery_by_angle():
    gallery = Gallery(["x", "y", "z"], torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]]))
    first, second = gallery.nearest(torch.tensor([[9.0, 0.1], [-1.0, 0.0]]), 2)
    assert list(first) == ["x", "z"]
    assert first["z"] == pytest.approx((9 + 0.1) / (2**0.5 * (81.01) ** 0.5))
    assert list(second)[0] == "y" and second["y"] == pytest.approx(0)
    assert len(gallery.nearest(torch.ones(1, 2), 7)[0]) == 3


@pytest.mark.parametrize(("size", "own"), [((50, 100), (224, 112)), ((400, 300), (300, 400)),
                                           ((20, 4000), (1024, 5))])  # fmt: skip
def test_bars_stand_beside_an_image_that_can_be_looked_at(size, own):
    image = np.full((*size, 3), 7, np.uint8)
    drawn = draw_bars(image, {"a": 0.75, "a name\nthat is much too long for the line" * 3: 0.25})
    pixels = np.array(drawn)
    width, height = own
    assert (pixels[:height, :width] == 7).all() and (pixels[:, width : width + 8] == 255).all()
    green = np.array([int(BAR[i : i + 2], 16) for i in (1, 3, 5)])
    rows = (pixels == green).all(axis=2).sum(axis=1)
    assert sorted(set(rows)) == [0, 0.25 * 288 + 1, 0.75 * 288 + 1]
    other = draw_bars(image, {"b": 0.5, "c": 0.5})
    assert drawn.size == other.size


def test_neighbours_are_a_strip_and_one_that_is_gone_leaves_its_place():
    image = np.full((10, 10, 3), 40, np.uint8)
    tall = np.full((30, 10, 3), 90, np.uint8)
    drawn = np.array(draw_neighbours(image, [("a/b.png", 0.9, tall), ("gone.png", 0.8, None)]))
    assert (drawn[:224, :224] == 40).all()
    assert (drawn[100, 244 + 112] == 90).all() and (drawn[100, 244 + 5] == 255).all()
    assert (drawn[:224, 480:] == 255).all() and drawn.shape[1] == 3 * 232 + 12
