"""The 15 common corruptions at five severities: Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations (Hendrycks and Dietterich, arXiv 1903.12261).

Written anew from what the released code computes (Apache-2.0), with its two tables of parameters:
the library that packages it runs neither with numpy 2 nor with 32 px images. Every draw follows
from (sample key, corruption, severity), so an image looks the same in any order, on any worker.

Differs from the released code, so that scores do not compare with those on its files, for which
there is ``published.py``: frost is drawn, not cut from photographs; values are rounded, not cut
off, and between two steps of one corruption (glass, motion and snow) they are not brought to whole
numbers at all; warps interpolate exactly, where OpenCV has 1/32 of a pixel; all is float64, where
it has float32; nothing is saved as a JPEG of quality 85 afterwards; random numbers are others.
"""

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from limbeck.data.formats import open_image
from limbeck.data.options import CORRUPTIONS
from limbeck.data.source import name_digest
from limbeck.data.views import generator
from limbeck.data.warps import convolve, gaussian_blur, motion_blur, plasma, sample, zoom

Pixels = np.ndarray
"""(S, S, 3), float64 in 0..1; a corruption may leave that range, which is cut off at the end."""
Rng = np.random.Generator
GRAY = np.array([0.299, 0.587, 0.114])  # of ITU-R BT.601, as OpenCV and Pillow have it

# Five values each, for severity 1 to 5, of the released make_imagenet_c.py, for 224 px.
IMAGENET: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": ((0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
             (0.55, 0.3, 4, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
             (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    # Parts of the image side; it counted 244 pixels of 224 there.
    "elastic_transform": tuple(
        tuple(244 / 224 * part for part in parts)
        for parts in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02),
                      (0.12, 0.01, 0.02))
    ),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),
}  # fmt: skip
# Likewise of make_cifar_c.py, for 32 px.
CIFAR: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": ((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
             (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
             (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05),
                          (0.1, 0.03, 0.03)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
}  # fmt: skip
BETWEEN = 85  # px: as many times 32 as 224 is of it; smaller images get CIFAR's severities


def corrupt(image: np.ndarray, name: str, severity: int, key: str) -> np.ndarray:
    """A square image (S, S, 3) uint8 under a corruption of ``CORRUPTIONS``, severity 1 to 5.

    ``key`` is the sample's name, from which all that is random follows. The parameters are those
    of CIFAR-10-C below 85 px, of ImageNet-C from there on; lengths in them are pixels, but of
    elastic_transform parts of the side.
    """
    table = CIFAR if image.shape[0] < BETWEEN else IMAGENET
    parameters = table[name][severity - 1]
    seed = int.from_bytes(name_digest(f"{name}/{severity}/{key}", 8), "big")
    rng = generator(seed, 0)
    corrupted = APPLY[name](image / 255, parameters, rng)
    return (corrupted.clip(0, 1) * 255).round().astype(np.uint8)


def gaussian_noise(image: Pixels, deviation: float, rng: Rng) -> Pixels:
    """Normal noise on every value."""
    return image + rng.normal(0, deviation, image.shape)


def shot_noise(image: Pixels, photons: float, rng: Rng) -> Pixels:
    """As if a white value were so many photons, counted one by one (Poisson)."""
    return rng.poisson(image * photons) / photons


def impulse_noise(image: Pixels, amount: float, rng: Rng) -> Pixels:
    """This part of the values becomes 0 or 1, either as likely."""
    is_hit = rng.random(image.shape) < amount
    return np.where(is_hit, rng.random(image.shape) < 0.5, image)


def defocus_blur(image: Pixels, parameters: tuple[float, float], rng: Rng) -> Pixels:
    """Out of focus: a disk of a radius, its edge softened."""
    return convolve(image, disk(*parameters))


@lru_cache(maxsize=16)
def disk(radius: float, edge_sigma: float) -> np.ndarray:
    """A filter: a disk of weights that sum to 1, smoothed by a small normal one.

    As in the released code it ends 8 pixels from its centre, or at a larger radius; what the
    smoothing would carry beyond is mirrored back, so that the sum may leave 1 by a little.
    """
    half = 1 if radius <= 8 else 2
    reach = max(8, int(radius))
    square = np.arange(-reach, reach + 1) ** 2
    is_inside = (square[:, None] + square <= radius**2).astype(float)
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / edge_sigma) ** 2)
    weights /= weights.sum()
    soft = np.pad(is_inside / is_inside.sum(), half, mode="reflect")
    for axis in (0, 1):
        soft = np.apply_along_axis(np.convolve, axis, soft, weights, mode="valid")
    is_used = soft.any(axis=0)
    return soft[np.ix_(is_used, is_used)]


def glass_blur(image: Pixels, parameters: tuple[float, int, int], rng: Rng) -> Pixels:
    """Through frosted glass: pixels are taken from their neighbours, between two blurs."""
    sigma, reach, rounds = parameters
    blurred = gaussian_blur(image, sigma)
    size = image.shape[0]
    taken = list(range(size * size))
    places = [
        row * size + column
        for row in range(size - reach, reach, -1)
        for column in range(size - reach, reach, -1)
    ]
    for _ in range(rounds):
        down, right = rng.integers(-reach, reach, (2, len(places)))
        # The released code means to swap the two, but copies: its second half reads what the
        # first has just written. Copying is what made the published files.
        for place, offset in zip(places, (down * size + right).tolist(), strict=True):
            taken[place] = taken[place + offset]
    return gaussian_blur(blurred.reshape(-1, 3)[taken].reshape(image.shape), sigma)


def smear(image: Pixels, parameters: tuple[float, float], rng: Rng) -> Pixels:
    """Motion blur in a direction of -45 to 45 degrees."""
    return motion_blur(image, *parameters, degrees=rng.uniform(-45, 45))


def zoom_blur(image: Pixels, parameters: tuple[float, float], rng: Rng) -> Pixels:
    """The camera moves on while the shutter is open: the mean of many enlargements."""
    factors = np.arange(1, *parameters)
    return (image + sum(zoom(image, factor) for factor in factors)) / (len(factors) + 1)


def snow(image: Pixels, parameters: tuple[float, ...], rng: Rng) -> Pixels:
    """Driven flakes over a whitened image."""
    mean, deviation, factor, least, radius, sigma, kept = parameters
    flakes = zoom(rng.normal(mean, deviation, image.shape[:2]), factor)
    flakes = np.where(flakes < least, 0, flakes).clip(0, 1)
    driven = motion_blur(flakes, radius, sigma, degrees=rng.uniform(-135, -45))[..., None]
    white = np.maximum(image, (image @ GRAY)[..., None] * 1.5 + 0.5)
    return kept * image + (1 - kept) * white + driven + np.rot90(driven, 2)


def frost(image: Pixels, parameters: tuple[float, float], rng: Rng) -> Pixels:
    """Ice crystals over the image. Differs from the released code: drawn, not photographed."""
    kept, laid_on = parameters
    return kept * image + laid_on * ice(image.shape[0], rng)


def ice(size: int, rng: Rng) -> Pixels:
    """Needles of ice in a few directions, in patches, bluish white on a dark pane."""
    needles = np.zeros((size, size))
    for degrees in rng.uniform(0, 360, 4):
        seeds = np.where(rng.random((size, size)) < 0.02, rng.uniform(0.3, 1, (size, size)), 0.0)
        drawn = motion_blur(seeds, size / 14, size / 14, degrees)
        # Of some image of 16 px or less no needle starts at all.
        needles = np.maximum(needles, drawn / (drawn.max() or 1))
    needles = gaussian_blur(needles, size / 400)
    clouds = _clouds(size, 1.6, rng)
    cover = (0.5 + 0.5 * (clouds - clouds.mean()) / clouds.std()).clip(0, 1)
    bright = 0.08 + cover * (0.55 + 1.4 * needles) + 0.4 * needles
    return (bright[..., None] * np.array([0.86, 0.95, 1.0])).clip(0, 1)


def fog(image: Pixels, parameters: tuple[float, float], rng: Rng) -> Pixels:
    """Clouds of all sizes between, the whole dimmed to the brightness that it had."""
    amount, decay = parameters
    brightest = image.max()
    veiled = image + amount * _clouds(image.shape[0], decay, rng)[..., None]
    return veiled * brightest / (brightest + amount)


def _clouds(size: int, decay: float, rng: Rng) -> np.ndarray:
    return plasma(1 << (size - 1).bit_length(), decay, rng)[:size, :size]


def brightness(image: Pixels, amount: float, rng: Rng) -> Pixels:
    """More of the V of HSV, the largest of a pixel's three values; hue and saturation stay."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + amount, 1)
    return np.where(value > 0, image * brighter / np.where(value > 0, value, 1), brighter)


def contrast(image: Pixels, factor: float, rng: Rng) -> Pixels:
    """Nearer to each channel's mean."""
    mean = image.mean(axis=(0, 1))
    return mean + factor * (image - mean)


def elastic_transform(image: Pixels, parameters: tuple[float, ...], rng: Rng) -> Pixels:
    """Stretched as a whole, by three corners, and then in parts, by a smooth random field."""
    size = image.shape[0]
    amount, sigma, jitter = (size * part for part in parameters)
    centre, side = size // 2, size // 3
    corners = centre + side * np.array([[1, 1], [1, -1], [-1, -1]])  # of (column, row)
    moved = corners + rng.uniform(-jitter, jitter, (3, 2))
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    rows, columns = np.mgrid[:size, :size].astype(np.float64)
    from_columns, from_rows = (columns * along[0] + rows * along[1] + along[2] for along in back.T)
    stretched = sample(image, from_rows, from_columns, "reflect")
    right, down = (
        amount * gaussian_blur(field, sigma, truncate=3, mode="symmetric")
        for field in rng.uniform(-1, 1, (2, size, size))
    )
    return sample(stretched, rows + down, columns + right, "symmetric")


def pixelate(image: Pixels, part: float, rng: Rng) -> Pixels:
    """As if of fewer pixels: this part of each side."""
    size = image.shape[0]
    small = _to_pillow(image).resize((int(size * part),) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((size, size), Image.Resampling.BOX)) / 255


def jpeg_compression(image: Pixels, quality: int, rng: Rng) -> Pixels:
    """Saved as a JPEG of this quality."""
    file = io.BytesIO()
    _to_pillow(image).save(file, "JPEG", quality=quality)
    return np.asarray(open_image(file.getvalue())) / 255


def _to_pillow(image: Pixels) -> Image.Image:
    return Image.fromarray((image * 255).round().astype(np.uint8))


APPLY: dict[str, Callable[[Pixels, Any, Rng], Pixels]] = dict(zip(CORRUPTIONS, (
    gaussian_noise, shot_noise, impulse_noise,
    defocus_blur, glass_blur, smear, zoom_blur,
    snow, frost, fog, brightness,
    contrast, elastic_transform, pixelate, jpeg_compression,
), strict=True))  # fmt: skip
"""The function of each corruption: (image, its parameters, random numbers) -> image."""
