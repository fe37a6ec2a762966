"""Views of images with objects: both moved together; pure functions of their seed.

With the published numbers it is large-scale jitter (ViTDet's, arXiv 2203.16527, as MAE-Lite and
G2SD train): flip, scale, crop, filled up right and below. Pixels are resized bilinearly and
smoothed, as Pillow does, which those were trained with.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limbeck.data.scenes.objects.options import ObjectViewOptions
from limbeck.data.scenes.objects.source import Annotated
from limbeck.data.scenes.raster import decode_runs, fill_polygon, fill_runs, whole_mask
from limbeck.data.scenes.views import distort
from limbeck.data.source import BadImage
from limbeck.data.views import COLOR_STREAM, CROP_STREAM, IMAGENET_MEAN_BYTES, generator
from limbeck.records import Objects

LEAST = 1e-5  # pixels: a side that is no more is none (published)
MOSAIC_CENTRE = (0.3, 0.7)  # of the side: where the four parts may meet

Size = tuple[int, int]
Sample = tuple[np.ndarray, Annotated]


def fitted_size(size: Size, side: float) -> Size:
    """(height, width) of an image that fits into a square: rounded half to even, as published."""
    factor = side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def crop_corner(size: Size, room: Size, shares: tuple[float, float]) -> tuple[int, int]:
    """(left, top) of a room in an image of a size, at these shares of what there is to spare."""
    spare = (max(0, size[1] - room[1]), max(0, size[0] - room[0]))
    return round(shares[0] * spare[0]), round(shares[1] * spare[1])


def fitted_image(image: np.ndarray, side: int) -> tuple[Tensor, Size]:
    """The image (H, W, 3) uint8 as it is shown to a detector, (3, S, S) uint8, and what of that is
    the image. The rest, right and below, is the mean colour."""
    size = fitted_size((image.shape[0], image.shape[1]), side)
    return _filled(_resized(image, size), (side, side)), size


def train_objects(
    sample: Sample,
    seed: int,
    options: ObjectViewOptions,
    side: int,
    *,
    has_masks: bool = False,
    draw_others: Callable[[np.random.Generator, int], list[Sample]] | None = None,
) -> tuple[Tensor, Objects]:
    """A random view, (3, S, S) uint8, of a sample and what is to be found in it.

    Crowds are left out. ``draw_others`` gives so many further samples for a mosaic; without it
    there is none.
    """
    rng = generator(seed, CROP_STREAM)
    is_mosaic = rng.random() < options.mosaic_prob and draw_others is not None
    if is_mosaic:
        assert draw_others is not None
        parts = [sample, *draw_others(rng, 3)]
        pixels, found, shapes = _mosaic(parts, rng, options, side)
        size = (side, side)
    else:
        pixels, found, shapes = _view(sample, rng, options, (side, side), side)
        size = (pixels.shape[1], pixels.shape[2])
    pixels = distort(pixels, generator(seed, COLOR_STREAM), options)
    masks = None
    if has_masks:
        masks = torch.zeros(len(shapes), side, side, dtype=torch.bool)
        for mask, shape in zip(masks, shapes, strict=True):
            shape.draw(mask)
    boxes, classes = found
    objects = Objects(
        torch.from_numpy(boxes).float(), torch.from_numpy(classes), size, masks,
        tuple(shape.outlines for shape in shapes) if has_masks else None,
    )  # fmt: skip
    return _filled(pixels, (side, side)), objects


class Shape(NamedTuple):
    """An object of a view: ``draw`` draws it into a mask (H, W) bool, by ``outlines`` (n, 2) if it
    has any. Those of a part of a mosaic, which end with it, are not told."""

    draw: Callable[[Tensor], None]
    outlines: list[np.ndarray] | None


def _mosaic(
    parts: list[Sample], rng: np.random.Generator, options: ObjectViewOptions, side: int
) -> tuple[Tensor, tuple[np.ndarray, np.ndarray], list[Shape]]:
    low, high = MOSAIC_CENTRE
    y, x = (round(side * (low + (high - low) * rng.random())) for _ in range(2))
    whole = torch.tensor(IMAGENET_MEAN_BYTES, dtype=torch.uint8)[:, None, None]
    whole = whole.repeat(1, side, side)
    boxes, classes, shapes = [], [], []
    corners = [(0, 0, y, x), (0, x, y, side), (y, 0, side, x), (y, x, side, side)]
    for part, (top, left, bottom, right) in zip(parts, corners, strict=True):
        pixels, found, own = _view(part, rng, options, (bottom - top, right - left), side / 2)
        whole[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
        boxes.append(found[0] + (left, top, left, top))
        classes.append(found[1])
        room = (slice(top, bottom), slice(left, right))
        shapes += [
            Shape(lambda mask, draw=shape.draw, room=room: draw(mask[room]), None)
            for shape in own  # type: ignore[misc]
        ]
    return whole, (np.concatenate(boxes), np.concatenate(classes)), shapes


def _view(
    sample: Sample,
    rng: np.random.Generator,
    options: ObjectViewOptions,
    room: Size,
    fitted: float,
) -> tuple[Tensor, tuple[np.ndarray, np.ndarray], list[Shape]]:
    """A sample flipped, scaled about the square of side ``fitted`` and cropped to a ``room``:
    pixels (3, h, w) that may be smaller, boxes and classes, and the shape of each."""
    image, found = sample
    old = (image.shape[0], image.shape[1])
    flips = rng.random(2) < (options.flip_prob, options.vertical_flip_prob)
    scale = options.scale[0] + (options.scale[1] - options.scale[0]) * rng.random()
    new = fitted_size(old, fitted * scale)
    first, second = rng.random(2)
    shares = (first, first if options.crop == "tied" else second)
    left, top = crop_corner(new, room, shares)
    height, width = min(room[0], new[0] - top), min(room[1], new[1] - left)
    # A flip and a resize may be exchanged: what is copied is smaller.
    pixels = _resized(np.flip(image, [axis for axis in (1, 0) if flips[1 - axis]]), new)
    pixels = pixels[:, top : top + height, left : left + width]

    def move(points: np.ndarray) -> np.ndarray:
        """Points (n, 2) of the image, x and y, to the view."""
        x, y = points[:, 0], points[:, 1]
        x = old[1] - x if flips[0] else x
        y = old[0] - y if flips[1] else y
        return np.stack([x * (new[1] / old[1]) - left, y * (new[0] / old[0]) - top], 1)

    corners = np.stack([move(found.boxes[:, :2]), move(found.boxes[:, 2:])])
    whole = np.concatenate([corners.min(0), corners.max(0)], 1)
    limits = (width, height, width, height)
    boxes = np.clip(whole, 0, limits)
    outlines: dict[int, list[np.ndarray]] = {}
    for index, shape in enumerate(found.shapes):
        if isinstance(shape, list):
            outlines[index] = [move(np.reshape(each, (-1, 2))) for each in shape]
            boxes[index] = _extent(outlines[index], limits)  # of what is left of it
    sides = boxes[:, 2:] - boxes[:, :2]
    share = sides.prod(1) / (whole[:, 2:] - whole[:, :2]).prod(1).clip(min=LEAST)
    is_kept = (sides > LEAST).all(1) & (share >= options.min_visible) & ~found.is_crowd
    shapes = []
    for index in np.flatnonzero(is_kept).tolist():
        own, by = found.shapes[index], outlines.get(index)
        shapes.append(
            Shape(lambda mask, s=own, o=by: _draw(mask, s, o, move, old, (height, width)), by)  # type: ignore[misc]
        )
    return pixels, (boxes[is_kept], found.classes[is_kept]), shapes


def _draw(
    mask: Tensor, shape: object, outlines: list[np.ndarray] | None,
    move: Callable[[np.ndarray], np.ndarray], old: Size, size: Size,
) -> None:  # fmt: skip
    """Draw an object of the image, by runs or outlines that were moved, into its view; one that has
    a box alone leaves it empty."""
    own = mask.numpy()[: size[0], : size[1]]
    if isinstance(shape, dict):
        counts = shape["counts"]
        runs = decode_runs(counts) if isinstance(counts, str) else counts
        if list(shape["size"]) != list(old):
            raise BadImage(f"its run lengths are not of {old[1]} x {old[0]} pixels")
        whole = whole_mask(fill_runs(runs, *old), old)
        # Of each place of the view the pixel that its centre comes from: the move, undone.
        corner, axes = move(np.zeros((1, 2)))[0], move(np.eye(2))
        y, x = (
            ((np.arange(side) + 0.5 - corner[k]) / (axes[k][k] - corner[k])).astype(int)
            for k, side in ((1, size[0]), (0, size[1]))
        )
        own |= whole[np.ix_(y.clip(0, old[0] - 1), x.clip(0, old[1] - 1))]
        return
    for outline in outlines or []:
        own |= whole_mask(fill_polygon(outline.ravel(), *size), size)


def _extent(outlines: list[np.ndarray], limits: tuple[int, ...]) -> np.ndarray:
    """The box around what of outlines (n, 2) lies within (0, 0) and ``limits``; zeros of none.

    Sutherland and Hodgman's cut by one side after the other.
    """
    kept = []
    for outline in outlines:
        for axis, limit, sign in ((0, 0, 1), (1, 0, 1), (0, limits[0], -1), (1, limits[1], -1)):
            inside = sign * (outline[:, axis] - limit)
            if (inside >= 0).all():
                continue
            following, after = np.roll(outline, -1, 0), np.roll(inside, -1)
            points = []
            for place in range(len(outline)):
                if inside[place] >= 0:
                    points.append(outline[place])
                if (inside[place] >= 0) != (after[place] >= 0):
                    share = inside[place] / (inside[place] - after[place])
                    points.append(outline[place] + share * (following[place] - outline[place]))
            outline = np.array(points).reshape(-1, 2)
        kept.append(outline)
    points = np.concatenate(kept)
    return np.concatenate([points.min(0), points.max(0)]) if len(points) else np.zeros(4)


def _resized(image: np.ndarray, size: Size) -> Tensor:
    """(3, h, w) uint8."""
    if image.shape[:2] != size:
        picture = Image.fromarray(np.ascontiguousarray(image))
        image = np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def _filled(pixels: Tensor, size: Size) -> Tensor:
    whole = torch.tensor(IMAGENET_MEAN_BYTES, dtype=torch.uint8)[:, None, None].repeat(1, *size)
    whole[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    return whole
