"""Images per second and core: our loader's work against a plain PIL pipeline.

    OMP_NUM_THREADS=1 python -m benchmarks loader [FOLDER] [--repeats 7]

Both read the same files, decode, crop, flip to 224 pixels, and end with one float batch in 0..1 per
64 images, in one process on one thread, taking turns. The plain pipeline is torchvision's own
classes on PIL images, as in most training scripts, without their Normalize: ours normalises in the
encoder. Without a folder, 64 photo-like JPEG files of 0.2 megapixels are generated.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from limbeck.data.decode import decode_image
from limbeck.data.folder import FolderSource
from limbeck.data.options import DataOptions, ViewOptions
from limbeck.data.source import Source
from limbeck.data.views import CROP_STREAM, draw_crop, generator, train_view, view_seed

IMG_SIZE = 224
BATCH_SIZE = 64
TARGET_RATIO = 1.5


def our_batch(source: Source, indices: list[int], epoch: int) -> Tensor:
    options, max_pixels = ViewOptions(), DataOptions().max_image_pixels
    views = []
    for index in indices:
        image = decode_image(source.read(index).data, max_pixels)
        seed = view_seed(0, epoch, source.key(index))
        views.append(train_view(image, seed, options, IMG_SIZE).student)
    return torch.stack(views).float().div_(255)


PLAIN_VIEW = transforms.Compose(
    [
        transforms.RandomResizedCrop(
            IMG_SIZE, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
        ),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
)


def plain_batch(source: Source, indices: list[int], epoch: int) -> Tensor:
    del epoch  # it draws from the global generator
    images = [Image.open(io.BytesIO(source.read(i).data)).convert("RGB") for i in indices]
    return torch.stack([PLAIN_VIEW(image) for image in images])


def measure_seconds(make: Callable[..., Tensor], source: Source, epoch: int) -> float:
    start = time.perf_counter()
    for first in range(0, len(source), BATCH_SIZE):
        make(source, list(range(first, min(first + BATCH_SIZE, len(source)))), epoch)
    return time.perf_counter() - start


def mean_crop_areas(source: Source, num_epochs: int) -> tuple[float, float]:
    """Mean part of the area that a crop takes: ours, torchvision's."""
    ours, plain = [], []
    options, max_pixels = ViewOptions(), DataOptions().max_image_pixels
    for index in range(min(len(source), BATCH_SIZE)):
        image = decode_image(source.read(index).data, max_pixels)
        height, width = image.shape[:2]
        shape_only = torch.empty(3, height, width)
        for epoch in range(num_epochs):
            rng = generator(view_seed(0, epoch, source.key(index)), CROP_STREAM)
            _, _, crop_height, crop_width = draw_crop(rng, height, width, options)
            ours.append(crop_height * crop_width / (height * width))
            _, _, crop_height, crop_width = transforms.RandomResizedCrop.get_params(
                shape_only, list(options.scale), list(options.ratio)
            )
            plain.append(crop_height * crop_width / (height * width))
    return statistics.mean(ours), statistics.mean(plain)


def write_photos(folder: Path, num_photos: int = 64) -> None:
    """JPEG files with edges and grain, about as costly to decode as photos of this size."""
    rng = np.random.default_rng(0)
    for number in range(num_photos):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 400), Image.Resampling.BICUBIC), dtype=np.float32)
        grain = rng.normal(0, 12, smooth.shape)
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.jpg", quality=90)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks loader")
    parser.add_argument("folder", nargs="?", type=Path, help="a folder of images")
    parser.add_argument("--repeats", type=int, default=7, help="times that each is measured")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as generated:
        if chosen.folder is None:
            write_photos(Path(generated))
        report(FolderSource(chosen.folder or Path(generated)), chosen.repeats)


def report(source: Source, repeats: int) -> None:
    ours, plain = [], []
    measure_seconds(our_batch, source, epoch=0)  # warm-up: file cache, first calls
    measure_seconds(plain_batch, source, epoch=0)
    for epoch in range(repeats):
        ours.append(len(source) / measure_seconds(our_batch, source, epoch))
        plain.append(len(source) / measure_seconds(plain_batch, source, epoch))
    ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
    our_area, plain_area = mean_crop_areas(source, num_epochs=500)
    print(f"{len(source)} images, one core, median of {repeats} turns")
    print(f"ours            {statistics.median(ours):7.0f} images/s")
    print(f"plain PIL       {statistics.median(plain):7.0f} images/s")
    print(f"ratio           {ratio:7.2f}   (target: at least {TARGET_RATIO})")
    print(f"mean crop area  {our_area:7.4f} ours, {plain_area:.4f} plain")
