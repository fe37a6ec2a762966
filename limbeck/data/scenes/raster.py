"""Outlines and run lengths, as COCO has them, to pixels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from limbeck.data.source import BadImage


class Patch(NamedTuple):
    """``is_inside`` (h, w) bool lies at (top, left) of an image; all else is outside."""

    top: int
    left: int
    is_inside: np.ndarray


def fill_polygon(points: Sequence[float], height: int, width: int) -> Patch:
    """The pixels of (H, W) whose centre lies in an outline x, y, x, y, ...

    Where it crosses itself, what it goes around twice is outside (even-odd). Each edge turns over
    all pixels right of it in the rows that it passes.
    """
    corners = np.asarray(points, np.float64)
    if len(corners) % 2 or not np.isfinite(corners).all():
        raise BadImage("an outline in its annotation is damaged")
    corners = corners.reshape(-1, 2)
    if not len(corners):
        return Patch(0, 0, np.zeros((0, 0), bool))
    (left, top), (right, bottom) = (
        np.clip(limit, 0, (width, height)).astype(int)
        for limit in (np.floor(corners.min(0)), np.ceil(corners.max(0)))
    )
    turns = np.zeros((bottom - top, right - left + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        # Rows with low <= centre < high: a corner counts for one of its edges only.
        low, high = np.clip(np.ceil(np.sort([y0, y1]) - 0.5), top, bottom).astype(int)
        rows = np.arange(low, high)
        if len(rows):
            crossings = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            columns = np.clip(np.ceil(crossings - 0.5), left, right).astype(int) - left
            turns[rows - top, columns] += 1
    return Patch(top, left, np.cumsum(turns[:, :-1], axis=1) % 2 == 1)


def fill_runs(counts: Sequence[int], height: int, width: int) -> Patch:
    """The pixels of (H, W) in runs, by the lengths of those outside, inside, ... down columns."""
    lengths = np.asarray(counts, np.int64)
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise BadImage(f"the run lengths in its annotation are not those of {width} x {height}")
    is_inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T
    rows, columns = (np.flatnonzero(is_inside.any(axis)) for axis in (1, 0))
    if not len(rows):
        return Patch(0, 0, np.zeros((0, 0), bool))
    top, left = int(rows[0]), int(columns[0])
    return Patch(top, left, is_inside[top : rows[-1] + 1, left : columns[-1] + 1].copy())


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


def whole_mask(patch: Patch, size: Sequence[int]) -> np.ndarray:
    """(H, W) bool of a patch of it."""
    whole = np.zeros(tuple(size), bool)
    rows, columns = patch.is_inside.shape
    whole[patch.top : patch.top + rows, patch.left : patch.left + columns] = patch.is_inside
    return whole


def encode_runs(is_inside: np.ndarray) -> str:
    """(H, W) bool in COCO's compressed run lengths, see ``decode_runs``."""
    flat = is_inside.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, flat.size]).tolist()
    counts = [0, *counts] if flat.size and flat[0] else counts
    letters = []
    for place, count in enumerate(counts):
        value, is_last = count - (counts[place - 2] if place > 2 else 0), False
        while not is_last:
            bits, value = value & 31, value >> 5
            is_last = value == (-1 if bits & 16 else 0)
            letters.append(chr(48 + bits + 32 * (not is_last)))
    return "".join(letters)
