"""The views of TinyViT's released code (arXiv 2207.10666), made again from a record's seed.

Everything about a view is drawn from one stream, numpy's PCG64 of the seed, in a fixed order: crop,
flip, RandAugment (rand-m9-mstd0.5-inc1), erasing. Crop and erasing are drawn in pixels of the image
and of a frame of 224 pixels, so the size of the view changes nothing but the noise.

Differs from the released code: PosterizeIncreasing at its full magnitude, in about 0.15 % of the
views, keeps one bit instead of none, which Pillow has come to refuse.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from limbeck.data.views import IMAGENET_MEAN_BYTES, NO_BOX, Box, View
from limbeck.errors import RunError

CROP_SCALE = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
FLIP_PROB = 0.5
NUM_OPERATIONS, OPERATION_PROB = 2, 0.5
MAGNITUDE, MAGNITUDE_STD, MAX_MAGNITUDE = 9, 0.5, 10.0
ERASE_PROB = 0.25
ERASE_SCALE = (0.02, 1 / 3)
ERASE_RATIO = (0.3, 1 / 0.3)
FRAME = 224  # pixels: the side in which the box to erase is drawn
MAX_NOISE_SEED = 2**30
NUM_TRIES = 10

# The order is part of the layout: an operation is drawn by its place.
OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing",
    "SolarizeAdd", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing",
    "SharpnessIncreasing", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip

UNSIGNED: dict[str, Callable[[float], int]] = {
    "PosterizeIncreasing": lambda level: max(1, 4 - int(level * 4)),  # bits that are kept
    "SolarizeIncreasing": lambda level: 256 - int(level * 256),  # inverted from here on
    "SolarizeAdd": lambda level: int(level * 110),  # added to what is below 128
}
"""The arguments of timm's functions at a level of 0..1."""
SIGNED: dict[str, Callable[[float], float]] = {
    "Rotate": lambda level: level * 30.0,  # degrees
    **dict.fromkeys(("ShearX", "ShearY"), lambda level: level * 0.3),
    **dict.fromkeys(("TranslateXRel", "TranslateYRel"), lambda level: level * 0.45),
}
"""Likewise, before the sign that is drawn."""
ENHANCING = frozenset(OPERATIONS[7:11])
STREAMS = (10, 3, 0.31675833970975287, 8.288087481772685, 0.38036911)
"""Of seed 12345: two of fifteen and the next number; a normal one. Of seed 7: the first noise."""


@dataclass(frozen=True)
class Operation:
    """One applied operation of RandAugment, its magnitude 0..10 and the argument for timm."""

    name: str
    magnitude: float
    argument: float | int | None


@dataclass(frozen=True)
class Drawn:
    """A view before any pixel is touched.

    ``crop`` in pixels of the image, ``erase_box`` in those of the frame; zeros if there is none.
    """

    crop: Box
    is_flipped: bool
    operations: tuple[Operation, ...]
    erase_box: Box
    noise_seed: int


def released_view(image: np.ndarray, seed: int, img_size: int) -> View:
    """The view of ``image`` (H, W, 3) uint8 that a record's ``seed`` stands for.

    The teacher of the released code sees all that the student sees, so both are one tensor here.
    The box is to be filled with ``released_noise``.
    """
    drawn = draw_released(released_generator(seed), image.shape[0], image.shape[1])
    top, left, height, width = drawn.crop
    picture = Image.fromarray(image).crop((left, top, left + width, top + height))
    picture = picture.resize((img_size, img_size), Image.Resampling.BICUBIC)
    if drawn.is_flipped:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for operation in drawn.operations:
        picture = _apply(picture, operation)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    box = scale_box(drawn.erase_box, img_size)
    return View(pixels, pixels, box, drawn.noise_seed)


def released_noise(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """What an erased box is filled with after normalisation: float32 of ``shape``, N(0, 1)."""
    return np.random.Generator(np.random.MT19937(seed)).standard_normal(shape).astype(np.float32)


def released_generator(seed: int) -> np.random.Generator:
    """The one stream from which all of a view is drawn."""
    return np.random.Generator(np.random.PCG64(seed))


def draw_released(rng: np.random.Generator, height: int, width: int) -> Drawn:
    """All that is drawn for a view of an image of this size, in the released order."""
    crop = _draw_crop(rng, height, width)
    is_flipped = rng.random() < FLIP_PROB
    operations = _draw_operations(rng)
    erase_box = _draw_erase_box(rng)
    noise_seed = 0 if erase_box == NO_BOX else draw_integer(rng, 0, MAX_NOISE_SEED)
    return Drawn(crop, is_flipped, operations, erase_box, noise_seed)


def scale_box(box: Box, img_size: int) -> Box:
    """A box of the frame in a view of ``img_size`` pixels; zeros where nothing is left of it."""
    top, left, height, width = (round(side * img_size / FRAME) for side in box)
    top, left = min(top, img_size - 1), min(left, img_size - 1)
    height, width = min(height, img_size - top), min(width, img_size - left)
    return (top, left, height, width) if height and width else NO_BOX


def check_streams() -> None:
    """Raise RunError where numpy draws otherwise than when the released sets were written.

    numpy promises this of no method of its ``Generator``: another stream would silently make
    other views.
    """
    rng = released_generator(12345)
    drawn = [*rng.choice(15, 2).tolist(), rng.random()]
    drawn += [released_generator(12345).normal(9, 0.5), released_noise(7, (1, 1, 1)).item()]
    if not np.allclose(drawn, STREAMS, rtol=0, atol=1e-7):
        raise RunError(
            f"numpy {np.__version__} draws other random numbers than the released views were made "
            "with, so they can't be made again; install another version of numpy, such as 2.4."
        )


def _draw_crop(rng: np.random.Generator, height: int, width: int) -> Box:
    log_ratio = (math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1]))
    for _ in range(NUM_TRIES):
        area = _uniform(rng, CROP_SCALE) * (height * width)
        ratio = math.exp(_uniform(rng, log_ratio))
        # max: the released code fails where a ribbon's crop rounds to nothing.
        w, h = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if w <= width and h <= height:
            top = draw_integer(rng, 0, height - h)
            return top, draw_integer(rng, 0, width - w), h, w
    h, w = height, width
    if width / height < CROP_RATIO[0]:
        h = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        w = round(height * CROP_RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def _draw_operations(rng: np.random.Generator) -> tuple[Operation, ...]:
    applied = []
    for place in rng.choice(len(OPERATIONS), NUM_OPERATIONS).tolist():
        if rng.random() > OPERATION_PROB:
            continue
        # Drawn also for the operations that have none.
        magnitude = rng.normal(MAGNITUDE, MAGNITUDE_STD)
        magnitude = max(0.0, min(float(magnitude), MAX_MAGNITUDE))
        name = OPERATIONS[place]
        applied.append(Operation(name, magnitude, _draw_argument(rng, name, magnitude / 10)))
    return tuple(applied)


def _draw_argument(rng: np.random.Generator, name: str, level: float) -> float | int | None:
    if name in UNSIGNED:
        return UNSIGNED[name](level)
    if name not in SIGNED and name not in ENHANCING:
        return None
    sign = -1 if rng.random() > 0.5 else 1
    return max(0.1, 1.0 + sign * level * 0.9) if name in ENHANCING else sign * SIGNED[name](level)


def _draw_erase_box(rng: np.random.Generator) -> Box:
    if rng.random() > ERASE_PROB:
        return NO_BOX
    log_ratio = (math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1]))
    for _ in range(NUM_TRIES):
        area = _uniform(rng, ERASE_SCALE) * (FRAME * FRAME)
        ratio = math.exp(_uniform(rng, log_ratio))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < FRAME and w < FRAME:
            top = draw_integer(rng, 0, FRAME - h)
            return top, draw_integer(rng, 0, FRAME - w), h, w
    return NO_BOX


def _uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return limits[0] + rng.random() * (limits[1] - limits[0])


def draw_integer(rng: np.random.Generator, low: int, high: int) -> int:
    """One of ``low..high``, both included."""
    return min(int(rng.random() * (high - low + 1)) + low, high)


def _apply(picture: Image.Image, operation: Operation) -> Image.Image:
    from timm.data.auto_augment import NAME_TO_OP

    arguments = () if operation.argument is None else (operation.argument,)
    return NAME_TO_OP[operation.name](
        picture, *arguments, fillcolor=IMAGENET_MEAN_BYTES, resample=Image.Resampling.BICUBIC
    )
