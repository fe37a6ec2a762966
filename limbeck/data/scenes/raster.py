"""Outlines and run lengths, as COCO has them, to pixels."""

from collections.abc import Sequence

import numpy as np

from limbeck.data.source import BadImage


def fill_polygon(points: Sequence[float], height: int, width: int) -> np.ndarray:
    """Is inside, (H, W) bool: the pixels whose centre lies in an outline x, y, x, y, ...

    Where it crosses itself, what it goes around twice is outside (even-odd). Each edge turns over
    all pixels right of it in the rows that it passes.
    """
    corners = np.asarray(points, np.float64)
    if len(corners) % 2 or not np.isfinite(corners).all():
        raise BadImage("an outline in its annotation is damaged")
    corners = corners.reshape(-1, 2)
    turns = np.zeros((height, width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        low, high = min(y0, y1), max(y0, y1)
        # Rows with low <= centre < high: a corner counts for one of its edges only.
        rows = np.arange(max(0, np.ceil(low - 0.5)), min(height, np.ceil(high - 0.5)), dtype=int)
        if len(rows):
            crossings = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            turns[rows, np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)] += 1
    return np.cumsum(turns[:, :width], axis=1) % 2 == 1


def fill_runs(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """Is inside, (H, W) bool, of the lengths of runs outside, inside, outside, ... down columns."""
    lengths = np.asarray(counts, np.int64)
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise BadImage(f"the run lengths in its annotation are not those of {width} x {height}")
    is_inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return is_inside.reshape(width, height).T


def decode_runs(text: str) -> list[int]:
    """COCO's compressed run lengths: five bits a letter, from the third on differences of two."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise BadImage("the run lengths in its annotation are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last of this number
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
