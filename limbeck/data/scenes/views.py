"""Views of scenes: image and label map moved together; pure functions of their seed.

The recipe is that of TinyMIM (arXiv 2301.01296), MAE-Lite (2205.14443) and G2SD (2306.11254), which
is mmsegmentation's: scale, crop, flip, photometric distortion, padding. Pixels are resized
bilinearly without smoothing, as OpenCV does, which those were trained with. Only the crop is ever
made: a picture four times as large would be thrown away but for it.
"""

import numpy as np
import torch
from torch import Tensor

from limbeck.data.scenes.objects.options import ObjectViewOptions
from limbeck.data.scenes.options import SceneViewOptions
from limbeck.data.views import COLOR_STREAM, CROP_STREAM, IMAGENET_MEAN_BYTES, generator
from limbeck.records import IGNORE

NUM_TESTS = 10  # of crops; the one after them is taken as it is
BOX_RATIO = 4  # 2048 to 512, ADE20K's
HUES = 180  # of a circle, in OpenCV's 8 bits


def train_scene(
    image: np.ndarray, labels: np.ndarray, seed: int, options: SceneViewOptions, size: int
) -> tuple[Tensor, Tensor]:
    """A random view, (3, S, S) uint8, of ``image`` (H, W, 3) and its label map (S, S) uint8.

    What a small image leaves free on the right and below is the mean colour, which normalisation
    makes (nearly) 0, and ``IGNORE``.
    """
    rng = generator(seed, CROP_STREAM)
    ratio = options.scale[0] + (options.scale[1] - options.scale[0]) * rng.random()
    height, width = scaled_size(
        labels.shape[0], labels.shape[1], options.box or (BOX_RATIO * size, size), ratio
    )
    nearest = _nearest(height, labels.shape[0]), _nearest(width, labels.shape[1])
    rows, columns, crop = _draw_crop(rng, labels, nearest, size, options.max_class_share)
    is_flipped = rng.random() < options.flip_prob
    pixels = _resized(image, (height, width), rows, columns)
    pixels = distort(pixels, generator(seed, COLOR_STREAM), options)
    cropped = torch.from_numpy(crop)
    if is_flipped:
        pixels, cropped = pixels.flip(2), cropped.flip(1)
    if cropped.shape == (size, size):
        return pixels.contiguous(), cropped.contiguous()
    whole = torch.tensor(IMAGENET_MEAN_BYTES, dtype=torch.uint8)[:, None, None].repeat(
        1, size, size
    )
    whole_labels = torch.full((size, size), IGNORE, dtype=torch.uint8)
    whole[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    whole_labels[: cropped.shape[0], : cropped.shape[1]] = cropped
    return whole, whole_labels


def scaled_size(height: int, width: int, box: tuple[int, int], ratio: float) -> tuple[int, int]:
    """(height, width) of an image that just fits into a box (long, short side) times ``ratio``."""
    long, short = int(box[0] * ratio), int(box[1] * ratio)
    factor = min(long / max(height, width), short / min(height, width))
    # max: a ribbon one pixel wide would round to nothing.
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def _nearest(new: int, old: int) -> np.ndarray:
    """The old place of each new one: the pixel that its centre lies in.

    Differs from the recipe: OpenCV's takes the corner's, up to half a pixel off the image.
    """
    return (2 * np.arange(new) + 1) * old // (2 * new)


def _draw_crop(
    rng: np.random.Generator,
    labels: np.ndarray,
    nearest: tuple[np.ndarray, np.ndarray],
    size: int,
    max_share: float,
) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns of the resized image, and its label map there."""
    for test in range(NUM_TESTS + 1):
        top, left = (int(rng.integers(max(len(axis) - size, 0) + 1)) for axis in nearest)
        rows, columns = slice(top, top + size), slice(left, left + size)
        crop = labels[nearest[0][rows, None], nearest[1][None, columns]]
        if test == NUM_TESTS or _has_classes(crop, max_share):
            break
    return rows, columns, crop


def _has_classes(crop: np.ndarray, max_share: float) -> bool:
    counts = np.bincount(crop.ravel(), minlength=256)[:IGNORE]
    counts = counts[counts > 0]
    return len(counts) > 1 and bool(counts.max() < max_share * counts.sum())


def _resized(image: np.ndarray, size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """(3, h, w) uint8: these rows and columns of the image resized to ``size``."""
    low, high, weight = _neighbours(size[0], image.shape[0], rows)
    left, right, side = _neighbours(size[1], image.shape[1], columns)
    # The columns that are needed and no others, rows first: memory is read in its order.
    start, stop = int(left[0]), int(right[-1]) + 1
    pixels = torch.from_numpy(image[:, start:stop])
    above, below = (pixels[index].float() for index in (low, high))
    lines = torch.lerp(above, below, weight[:, None, None])
    blended = torch.lerp(lines[:, left - start], lines[:, right - start], side[None, :, None])
    return blended.add_(0.5).to(torch.uint8).permute(2, 0, 1)


def _neighbours(new: int, old: int, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Of each new place in ``part``: the two old ones around it, and the weight of the second."""
    places = (torch.arange(new, dtype=torch.float64)[part] + 0.5) * (old / new) - 0.5
    places = places.clamp_(0, old - 1)
    first = places.floor()
    weight = (places - first).float()
    first = first.long()
    return first, (first + 1).clamp_(max=old - 1), weight


def distort(
    pixels: Tensor, rng: np.random.Generator, options: SceneViewOptions | ObjectViewOptions
) -> Tensor:
    """Brightness, contrast, saturation and hue, each or none, each cut to whole bytes."""
    # All is drawn, whatever of it happens: switching one off changes none of the others.
    brightness, contrast, saturation, hue = rng.random(4) < options.distort_prob
    is_contrast_first = rng.random() < 0.5
    shift = options.brightness * (2 * rng.random() - 1)
    contrast_by, saturation_by = (
        low + (high - low) * rng.random() for low, high in (options.contrast, options.saturation)
    )
    turn = int(rng.integers(-options.hue, options.hue)) if options.hue else 0
    if brightness:
        pixels = _truncated(pixels + shift)
    if contrast and is_contrast_first:
        pixels = _truncated(pixels * contrast_by)
    if saturation:
        hues, strength, value = to_hsv(pixels)
        pixels = from_hsv(hues, _truncated(strength * saturation_by), value)
    if hue and turn:
        hues, strength, value = to_hsv(pixels)
        pixels = from_hsv((hues + turn) % HUES, strength, value)
    if contrast and not is_contrast_first:
        pixels = _truncated(pixels * contrast_by)
    return pixels


def _truncated(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def to_hsv(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue (0..179), saturation and value (0..255) of (3, H, W) uint8, in whole numbers, float32."""
    red, green, blue = pixels.float()
    value = torch.maximum(torch.maximum(red, green), blue)
    span = value - torch.minimum(torch.minimum(red, green), blue)
    third, part, safe = HUES / 3, HUES / 6, span.clamp(min=1)
    hues = torch.where(
        value == red,
        (green - blue) * part / safe,
        torch.where(
            value == green,
            (blue - red) * part / safe + third,
            (red - green) * part / safe + 2 * third,
        ),
    )
    hues = hues.add_(0.5).floor_() % HUES
    strength = (span * 255 / value.clamp(min=1)).add_(0.5).floor_()
    return hues, strength, value


def from_hsv(hues: Tensor, strength: Tensor, value: Tensor) -> Tensor:
    """(3, H, W) uint8 of hue, saturation and value as ``to_hsv`` gives them."""
    span = value * (strength / 255)
    # How far red, green and blue lie below the value: a trapezium each, a third of a circle apart.
    sector = torch.stack([hues * (6 / HUES) + start for start in (5, 3, 1)]) % 6
    share = torch.minimum(sector, 4 - sector).clamp_(0, 1)
    return (value - span * share).add_(0.5).to(torch.uint8)
