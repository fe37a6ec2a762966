"""Images per second and core: our loader's work against a plain PIL pipeline.

    OMP_NUM_THREADS=1 python -m benchmarks loader [--data FOLDER] [--repeats 7]

Both read the same files, decode, crop, flip to 224 pixels, and end with one float batch in 0..1 per
64 images, in one process on one thread, taking turns. The plain pipeline is torchvision's own
classes on PIL images, as in most training scripts, without their Normalize: ours normalises in the
encoder.
"""

import io
import itertools
import statistics
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from benchmarks.timing import median_ratio, take_turns
from limbeck.data.decode import decode_image
from limbeck.data.options import DataOptions, ViewOptions
from limbeck.data.source import Source
from limbeck.data.views import CROP_STREAM, draw_crop, generator, train_view, view_seed

IMG_SIZE = 224
BATCH_SIZE = 64
TARGET_RATIO = 1.5

MakeBatch = Callable[[Source, list[int], int], Tensor]


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


def read_all(make: MakeBatch, source: Source, epoch: int) -> None:
    for first in range(0, len(source), BATCH_SIZE):
        make(source, list(range(first, min(first + BATCH_SIZE, len(source)))), epoch)


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


def main(source: Source, repeats: int) -> None:
    """Print images per second of both, and that their crops are alike."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    epochs = itertools.count()
    seconds = take_turns(
        {
            "ours": lambda: read_all(our_batch, source, next(epochs)),
            "plain": lambda: read_all(plain_batch, source, next(epochs)),
        },
        repeats,
    )
    torch.set_num_threads(num_threads)
    our_area, plain_area = mean_crop_areas(source, num_epochs=500)
    rate = {name: len(source) / statistics.median(values) for name, values in seconds.items()}
    print("| photos | ours, images/s | plain PIL, images/s | ratio | target | "
          "mean crop area, ours / plain |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    print(
        f"| {len(source)} | {rate['ours']:.0f} | {rate['plain']:.0f} | "
        f"{median_ratio(seconds['plain'], seconds['ours']):.2f} | {TARGET_RATIO} | "
        f"{our_area:.4f} / {plain_area:.4f} |"
    )
