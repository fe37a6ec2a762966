"""Outlines on a grid: the golden target, parts, what lies outside."""

import sys

import numpy as np
import pytest

from limbeck.errors import UserError
from limbeck.ops.outlines import draw_in_box

BOX = (0.0, 0.0, 56.0, 56.0)


def rectangle(left, top, right, bottom):
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)


def test_golden_target():  # row 17, the route of polygons
    found = draw_in_box([rectangle(5, 10, 45, 30)], BOX, 28)
    rows, columns = found.nonzero()
    assert found.sum() == 200
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 14, 3, 22)


def test_parts_are_joined_and_cut_at_the_box():
    parts = [rectangle(0, 0, 8, 8), rectangle(40, 40, 100, 100)]
    found = draw_in_box(parts, (0.0, 0.0, 64.0, 64.0), 8)
    assert found[:1, :1].all() and found[5:, 5:].all() and found.sum() == 10
    assert not draw_in_box(parts, (200.0, 200.0, 300.0, 300.0), 8).any()


def test_a_box_without_area_is_drawn_in(monkeypatch):
    assert draw_in_box([rectangle(0, 0, 8, 8)], (4.0, 4.0, 4.0, 4.0), 8).shape == (8, 8)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match="detect"):
        draw_in_box([], BOX, 8)
