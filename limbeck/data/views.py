"""Views of an image: crops, flips, colours; pure functions of their seed.

A view never has to be stored to make it again: its seed follows from the run seed, the epoch and
the sample's key, and each kind of disturbance has its own random stream of that seed, so switching
one on changes none of the others. The crop and the flip are those of TinyMIM's recipe, which are
torchvision's; RandAugment and random erasing are timm's.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from limbeck.data.options import ViewOptions
from limbeck.data.source import name_digest
from limbeck.errors import UserError

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""
NO_BOX: Box = (0, 0, 0, 0)
DrawNoise = Callable[[int, tuple[int, int, int]], np.ndarray]
"""(seed, shape) -> float32 values of N(0, 1)."""

CROP_STREAM, COLOR_STREAM, ERASE_STREAM, NOISE_STREAM = range(4)
INTERPOLATION_STREAM = 4
JITTER_STREAM, GRAY_STREAM, BLUR_STREAM, SOLARIZE_STREAM = range(5, 9)
PROB_STREAMS = 1000  # whether something happens; what happens then is in the stream itself
BLUR_SIGMA = (0.1, 2.0)  # pixels, MoCo-v3 (arXiv 2104.02057) and DINO (2104.14294)
SOLARIZE_THRESHOLD = 128  # likewise; Pillow's default
NUM_TRIES = 10  # torchvision's for crops, timm's for erasing
ERASE_AREA = (0.02, 1 / 3)  # of the image, TinyMIM's fine-tuning
ERASE_ASPECT = (0.3, 1 / 0.3)
IMAGENET_MEAN_BYTES = (124, 116, 104)  # fill colour of RandAugment


@dataclass(frozen=True)
class View:
    """``student`` and ``teacher``, (3, S, S) uint8: one crop and flip, disturbed for the student.

    They are the same tensor where nothing disturbs the student. ``erase_box`` is to be filled with
    the noise of ``noise_seed`` by ``erase``, in the student's image only; zeros if there is none.
    """

    student: Tensor
    teacher: Tensor
    erase_box: Box
    noise_seed: int = 0


def view_seed(run_seed: int, epoch: int, key: str, view: int = 0) -> int:
    """The seed of one sample's view in one epoch, 0..2^63-1; ``view`` numbers several of them."""
    number = f"\0{view}" if view else ""
    digest = name_digest(f"{run_seed}/{epoch}/{key}{number}", 8)
    return int.from_bytes(digest, "big") >> 1


def train_view(image: np.ndarray, seed: int, options: ViewOptions, img_size: int) -> View:
    """A random view of ``image`` (H, W, 3) uint8, ``img_size`` pixels wide and high."""
    rng = generator(seed, CROP_STREAM)
    box = draw_crop(rng, image.shape[0], image.shape[1], options)
    is_flipped = rng.random() < options.flip_prob
    interpolation: str = options.interpolation
    if interpolation == "random":
        is_bilinear = generator(seed, INTERPOLATION_STREAM).random() < 0.5
        interpolation = "bilinear" if is_bilinear else "bicubic"
    crop = _resize(_crop(image, box), [img_size, img_size], interpolation)
    # A flipped view of the memory would cost more later than a copy now.
    teacher = crop.flip(2) if is_flipped else crop
    student = teacher
    if _happens(seed, JITTER_STREAM, options.jitter_prob):
        student = _jitter(student, generator(seed, COLOR_STREAM), options)
    if _happens(seed, GRAY_STREAM, options.gray_prob):
        student = TF.rgb_to_grayscale(student, num_output_channels=3)
    if _happens(seed, BLUR_STREAM, options.blur_prob):
        sigma = _uniform(generator(seed, BLUR_STREAM), BLUR_SIGMA)
        student = _from_pillow(_to_pillow(student).filter(ImageFilter.GaussianBlur(sigma)))
    if _happens(seed, SOLARIZE_STREAM, options.solarize_prob):
        student = TF.solarize(student, SOLARIZE_THRESHOLD)
    if options.rand_augment:
        augment = rand_augment(options.rand_augment, img_size)
        with global_seed(seed):
            student = _from_pillow(augment(_to_pillow(student)))
    erase_box = NO_BOX
    if options.erase_prob:
        erase_box = draw_erase_box(generator(seed, ERASE_STREAM), img_size, options.erase_prob)
    return View(student, teacher, erase_box, seed)


def eval_view(image: np.ndarray, img_size: int, crop_ratio: float = 0.875) -> Tensor:
    """The centre of ``image`` (H, W, 3) uint8 as (3, S, S) uint8.

    The short side is resized to ``img_size / crop_ratio`` (bicubic), then the centre is cropped.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    # A ribbon of 1 x 10000 pixels would need gigabytes when resized; its ends are cropped away.
    height, width = min(height, 4 * short), min(width, 4 * short)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    scale = math.floor(img_size / crop_ratio) / short
    size = [max(img_size, round(height * scale)), max(img_size, round(width * scale))]
    resized = _resize(_crop(image, (top, left, height, width)), size, "bicubic")
    return TF.center_crop(resized, [img_size, img_size])


def view_noise(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """What an erased box is filled with after normalisation: float32 of ``shape``, N(0, 1)."""
    return generator(seed, NOISE_STREAM).standard_normal(shape, dtype=np.float32)


def erase(
    images: Tensor,
    boxes: Tensor,
    noise_seeds: Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    draw_noise: DrawNoise = view_noise,
) -> Tensor:
    """Images (B, 3, H, W) in 0..1 with their boxes (B, 4) filled with noise.

    The noise is N(0, 1) per pixel after normalisation with ``mean`` and ``std``, as timm has it,
    hence ``mean + std * noise`` here, which leaves 0..1. It is drawn from each view's own seed
    (``noise_seeds``, (B,) int64), on the CPU: the same on every device. The input is not changed.
    """
    boxes = boxes.cpu()
    if not boxes.any():
        return images
    images = images.clone()
    shift = np.array(mean, np.float32).reshape(3, 1, 1)
    scale = np.array(std, np.float32).reshape(3, 1, 1)
    for index, (box, seed) in enumerate(zip(boxes.tolist(), noise_seeds.tolist(), strict=True)):
        top, left, height, width = box
        if height:
            noise = shift + scale * draw_noise(seed, (3, height, width))
            patch = torch.from_numpy(noise).to(images)
            images[index, :, top : top + height, left : left + width] = patch
    return images


def draw_crop(rng: np.random.Generator, height: int, width: int, options: ViewOptions) -> Box:
    """A random crop of an image of this size: torchvision's RandomResizedCrop.

    Area and log-aspect are uniform; after ten tries that do not fit, the largest central crop of
    an allowed aspect.
    """
    log_ratio = (math.log(options.ratio[0]), math.log(options.ratio[1]))
    for _ in range(NUM_TRIES):
        area = height * width * _uniform(rng, options.scale)
        aspect = math.exp(_uniform(rng, log_ratio))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    # max: the nearest aspect of a ribbon one pixel wide would round to nothing.
    crop_height = max(1, min(height, round(width / options.ratio[0])))
    crop_width = max(1, min(width, round(height * options.ratio[1])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def draw_erase_box(rng: np.random.Generator, img_size: int, erase_prob: float) -> Box:
    """A box to erase, with probability ``erase_prob``; zeros if there is none."""
    if rng.random() >= erase_prob:
        return NO_BOX
    log_aspect = (math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1]))
    for _ in range(NUM_TRIES):
        area = img_size * img_size * _uniform(rng, ERASE_AREA)
        aspect = math.exp(_uniform(rng, log_aspect))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < img_size and 0 < width < img_size:
            top = int(rng.integers(img_size - height + 1))
            left = int(rng.integers(img_size - width + 1))
            return top, left, height, width
    return NO_BOX


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the global ``random`` and ``np.random``, which timm draws from; restore them after."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@lru_cache(maxsize=8)
def rand_augment(recipe: str, img_size: int) -> Callable[[Image.Image], Image.Image]:
    """timm's RandAugment, such as ``rand-m9-mstd0.5-inc1``; raises UserError for a bad recipe."""
    from timm.data.auto_augment import posterize, rand_augment_transform

    hparams = {
        "translate_const": int(0.45 * img_size),
        "img_mean": IMAGENET_MEAN_BYTES,
        "interpolation": Image.Resampling.BICUBIC,
    }
    try:
        augment = rand_augment_transform(recipe, hparams)
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"'{recipe}' is no RandAugment recipe of timm; an example is rand-m9-mstd0.5-inc1."
        ) from error
    for operation in augment.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    # Differs from the recipe: its full magnitude keeps 0 bits, which blackened the image in old
    # Pillow and is an error in the new one; one bit is kept.
    return ImageOps.posterize(image, max(1, bits))


def generator(seed: int, stream: int) -> np.random.Generator:
    """The random numbers of one stream of a view, whose key is its seed and the stream."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


def _uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return limits[0] + (limits[1] - limits[0]) * rng.random()


def _crop(image: np.ndarray, box: Box) -> Tensor:
    top, left, height, width = box
    # Contiguous in memory as (h, w, 3): torch then resizes all three channels at once.
    pixels = np.ascontiguousarray(image[top : top + height, left : left + width])
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _resize(image: Tensor, size: list[int], interpolation: str) -> Tensor:
    return TF.resize(image, size, InterpolationMode(interpolation), antialias=True)


def _happens(seed: int, stream: int, prob: float) -> bool:
    # A stream beside it: whether it happens is not tied to how it is drawn.
    return prob > 0 and (prob >= 1 or generator(seed, PROB_STREAMS + stream).random() < prob)


def _jitter(image: Tensor, rng: np.random.Generator, options: ViewOptions) -> Tensor:
    steps = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation]
    strength = [*options.color_jitter]
    factors = [_uniform(rng, (max(0.0, 1 - value), 1 + value)) for value in strength]
    if options.hue_jitter:
        steps.append(TF.adjust_hue)
        strength.append(options.hue_jitter)
        factors.append(_uniform(rng, (-options.hue_jitter, options.hue_jitter)))
    if any(strength):
        for which in rng.permutation(len(steps)):
            if strength[which]:
                image = steps[which](image, factors[which])
    return image


def _to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def _from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
