"""All views of chosen images, for whoever looks at each of them once."""

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from limbeck.data.decode import decode_image
from limbeck.data.loader import HostBatch, readable, stack_views, to_device, workers_for
from limbeck.data.options import DataOptions, ReleasedViews, ViewOptions
from limbeck.data.source import BadImage, Source
from limbeck.data.view_makers import MakeView, view_maker
from limbeck.data.views import view_seed
from limbeck.data.workers import run_workers
from limbeck.records import Batch


class _AllViews(Dataset[HostBatch]):
    """Makes a batch of the named views of samples; an image is decoded once for all of them."""

    def __init__(
        self, source: Source, max_image_pixels: int, make_view: MakeView, seed: int
    ) -> None:
        self.source, self.max_image_pixels = source, max_image_pixels
        self.make_view, self.seed = make_view, seed

    def __getitem__(self, request: tuple[range, list[int]]) -> HostBatch:
        views, indices = request
        made, keys, labels, seeds = [], [], [], []
        skipped: list[tuple[str, str]] = []
        for index, image in readable(self.source, indices, self._image, 1, skipped):
            key = self.source.key(index)
            for view in views:
                seed = view_seed(self.seed, view, key)
                made.append(self.make_view(image, seed))
                keys.append(key)
                labels.append(self.source.label(index))
                seeds.append(seed)
        return stack_views(made, labels=labels, seeds=seeds, keys=keys, skipped=skipped)

    def _image(self, index: int) -> np.ndarray:
        return decode_image(self.source.read(index).data, self.max_image_pixels)


def view_batches(
    source: Source,
    requests: Iterable[tuple[range, list[int]]],
    *,
    data: DataOptions,
    views: ViewOptions,
    img_size: int,
    seed: int,
    world_size: int,
    device: torch.device,
    erase_mean: tuple[float, float, float],
    erase_std: tuple[float, float, float],
) -> Iterator[tuple[Batch, tuple[tuple[str, str], ...]]]:
    """For each request (view numbers, indices) the views of these samples, sample by sample.

    The keys of a batch repeat for each view. Beside it the samples left out, with the reason.
    """
    dataset = _AllViews(source, data.max_image_pixels, view_maker(views, img_size), seed)
    num_workers = workers_for(data, world_size)
    for host in run_workers(dataset, requests, num_workers, device.type == "cuda"):
        yield to_device(host, device, erase_mean, erase_std), host.skipped


def view_fingerprint(
    source: Source,
    index: int,
    *,
    data: DataOptions,
    views: ViewOptions | ReleasedViews,
    img_size: int,
    seed: int,
) -> str:
    """32 hex digits of a view's pixels, as the student gets them, of the box and its noise.

    ``seed`` is the view's own. Raises BadImage where the image can't be read.
    """
    make = view_maker(views, img_size)
    made = make(make.decode(source.read(index).data, data.max_image_pixels), seed)
    digest = blake2b(made.student.numpy().tobytes(), digest_size=16)
    digest.update(np.array(made.erase_box, dtype="<i8").tobytes())
    _, _, height, width = made.erase_box
    if height:  # the teacher may have seen it
        digest.update(make.draw_noise(made.noise_seed, (3, height, width)).astype("<f4").tobytes())
    return digest.hexdigest()


def view_fingerprints(
    source: Source,
    chosen: Iterable[tuple[int, int]],
    seed_of: Callable[[int, int], int],
    *,
    data: DataOptions,
    views: ViewOptions | ReleasedViews,
    img_size: int,
) -> list[dict[str, Any]]:
    """What a part of a store says of chosen (index, view): "key", "view" and "pixels" of each.

    ``seed_of`` gives their seeds. An image that can't be read has none.
    """
    found = []
    for index, view in chosen:
        try:
            pixels = view_fingerprint(
                source, index, data=data, views=views, img_size=img_size, seed=seed_of(index, view)
            )
        except BadImage:
            continue  # whoever trains is told what is wrong with it
        found.append({"key": source.key(index), "view": view, "pixels": pixels})
    return found
