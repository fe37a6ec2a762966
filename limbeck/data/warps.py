"""Linear filters and resampling of images, as the corruptions need them.

All take and give float64 arrays (H, W) or (H, W, 3): sums of this precision are the same to the
byte, once rounded, on any number of threads. Borders are continued as the name in ``mode`` says,
numpy's: "edge" (the last pixel again), "symmetric" (mirrored, the last pixel twice), "reflect"
(mirrored, the last pixel once).
"""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

Mirror = Literal["symmetric", "reflect"]
Mode = Literal["edge"] | Mirror


@lru_cache(maxsize=64)
def _mirrored(size: int, margin: int, mode: Mode) -> np.ndarray:
    """Which pixel stands at each place from -margin to size + margin - 1."""
    return np.pad(np.arange(size), margin, mode=mode)


@lru_cache(maxsize=64)
def _gaussian_matrix(size: int, sigma: float, truncate: float, mode: Mode) -> torch.Tensor:
    radius = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    matrix = np.zeros((size, size))
    source = _mirrored(size, radius, mode)
    for row in range(size):
        np.add.at(matrix[row], source[row : row + 2 * radius + 1], weights / weights.sum())
    return torch.from_numpy(matrix)


def gaussian_blur(
    image: np.ndarray, sigma: float, truncate: float = 4.0, mode: Mode = "edge"
) -> np.ndarray:
    """Blur with a deviation of ``sigma`` pixels, cut off at ``truncate`` deviations."""
    if sigma <= 0:
        return image
    # One matrix per axis: a blur wider than the image, as the elastic one has it, costs no more.
    height, width = image.shape[:2]
    down = _gaussian_matrix(height, sigma, truncate, mode)
    across = _gaussian_matrix(width, sigma, truncate, mode)
    # torch's product and not numpy's, which in every worker starts as many threads as cores.
    rows = down @ torch.from_numpy(np.ascontiguousarray(image)).reshape(height, -1)
    return (across @ rows.reshape(height, width, -1)).numpy().reshape(image.shape)


def motion_kernel(radius: float, sigma: float) -> np.ndarray:
    """Weights of a motion blur from a pixel on, one-sided; they sum to 1 (ImageMagick's)."""
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    return weights / weights.sum()


def motion_blur(image: np.ndarray, radius: float, sigma: float, degrees: float) -> np.ndarray:
    """Smear along a line, one pixel of it after the other with the weights of ``motion_kernel``."""
    height, width = image.shape[:2]
    radians = math.radians(degrees)
    weights = motion_kernel(radius, sigma)
    margin = len(weights)
    padded = image[_mirrored(height, margin, "edge")][:, _mirrored(width, margin, "edge")]
    blurred = np.zeros_like(image)
    for step, weight in enumerate(weights):
        top = margin + math.ceil(step * math.sin(radians) - 0.5)
        left = margin + math.ceil(step * math.cos(radians) - 0.5)
        blurred += weight * padded[top : top + height, left : left + width]
    return blurred


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Filter with a small square kernel of odd side that is the same in both directions."""
    height, width = image.shape[:2]
    margin = len(kernel) // 2
    padded = image[_mirrored(height, margin, "reflect")][:, _mirrored(width, margin, "reflect")]
    size = padded.shape[:2]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(kernel, size)[..., None]
    filtered = np.fft.irfft2(spectrum, size, axes=(0, 1))
    return filtered[2 * margin :, 2 * margin :]


@lru_cache(maxsize=256)
def _zoom_places(size: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """The pixel before each pixel of the enlarged centre, and the next one's weight."""
    crop = math.ceil(size / factor)
    first = (size - crop) // 2
    enlarged = round(crop * factor)
    # The ends of the crop are the ends of the enlarged one, as scipy.ndimage.zoom has it.
    places = first + np.arange(enlarged) * ((crop - 1) / max(1, enlarged - 1))
    trim = (enlarged - size) // 2
    places = places[trim : trim + size]
    before = np.minimum(places.astype(np.int64), size - 2)
    return before, (places - before)[:, None]


def zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """The centre of a square image, enlarged to the whole; bilinear."""
    size = len(image)
    before, weight = _zoom_places(size, factor)
    flat = image.reshape(size, -1)
    rows = flat[before] * (1 - weight) + flat[before + 1] * weight
    rows = rows.reshape(size, size, -1)
    columns = rows[:, before] * (1 - weight) + rows[:, before + 1] * weight
    return columns.reshape(image.shape)


def _reflected(places: np.ndarray, size: int, mode: Mirror) -> np.ndarray:
    """The pixel at each place, however far outside: there and back, again and again."""
    last = 2 * size - 1 if mode == "symmetric" else 2 * size - 2
    period = 2 * size if mode == "symmetric" else last
    within = places % period
    return np.minimum(within, last - within)


def sample(image: np.ndarray, rows: np.ndarray, columns: np.ndarray, mode: Mirror) -> np.ndarray:
    """(H, W, 3), H and W above 1, at real-valued places, (h, w) each; bilinear."""
    height, width = image.shape[:2]
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    flat = image.reshape(height * width, -1)
    this_row, next_row = (_reflected(top + by, height, mode) * width for by in (0, 1))
    this_column, next_column = (_reflected(left + by, width, mode) for by in (0, 1))
    upper = flat[this_row + this_column] * (1 - right) + flat[this_row + next_column] * right
    lower = flat[next_row + this_column] * (1 - right) + flat[next_row + next_column] * right
    return upper * (1 - down) + lower * down


def plasma(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Clouds of all sizes (diamond-square), (size, size) in 0..1; ``size`` is a power of two.

    The disturbance of one step is ``decay`` squared times that of the next finer one.
    """
    clouds = np.zeros((size, size))
    step, spread = size, 100.0

    def disturbed(mean: np.ndarray) -> np.ndarray:
        return mean + spread * rng.uniform(-spread, spread, mean.shape)

    while step >= 2:
        half = step // 2
        corners = clouds[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        clouds[half::step, half::step] = disturbed((pairs + np.roll(pairs, -1, axis=1)) / 4)
        centres = clouds[half::step, half::step]
        every, between = slice(None, None, step), slice(half, None, step)
        for axis, place in enumerate(((between, every), (every, between))):
            along = corners + np.roll(corners, -1, axis=axis)
            aside = centres + np.roll(centres, 1, axis=1 - axis)
            clouds[place] = disturbed((along + aside) / 4)
        step, spread = half, spread / decay
    clouds -= clouds.min()
    return clouds / clouds.max()
