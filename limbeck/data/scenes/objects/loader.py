"""From images with objects to batches on the device, with every promise of ``data.loader``."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.data.loader import HostBatch, readable, to_device, whole_batches, workers_for
from limbeck.data.options import DataOptions
from limbeck.data.order import StepOrder
from limbeck.data.scenes.loader import host_batch
from limbeck.data.scenes.objects.options import ObjectViewOptions
from limbeck.data.scenes.objects.source import Annotated, ObjectSource
from limbeck.data.scenes.objects.views import Sample, fitted_image, train_objects
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import BadImage
from limbeck.data.views import view_seed
from limbeck.data.workers import run_workers
from limbeck.records import Batch, Objects


class _TrainObjects(Dataset[HostBatch]):
    """Makes a whole batch from (epoch, indices), one view of each image."""

    def __init__(
        self, source: ObjectSource, views: ObjectViewOptions, img_size: int, has_masks: bool,
        run_seed: int, max_tries: int, mosaics_end: float,
    ) -> None:  # fmt: skip
        self.source, self.views, self.img_size, self.has_masks = source, views, img_size, has_masks
        self.run_seed, self.max_tries, self.mosaics_end = run_seed, max_tries, mosaics_end

    def __getitem__(self, request: tuple[int, list[int]]) -> HostBatch:
        epoch, indices = request
        skipped: list[tuple[str, str]] = []
        images: list[Tensor] = []
        objects: list[Objects] = []
        seeds: list[int] = []
        keys: list[str] = []
        draw_others = self._draw_others if epoch < self.mosaics_end else None

        def read(index: int) -> tuple[int, Tensor, Objects]:
            seed = view_seed(self.run_seed, epoch, self.source.key(index))
            sample = self.source.read_objects(index)
            view = train_objects(
                sample, seed, self.views, self.img_size, has_masks=self.has_masks,
                draw_others=draw_others,
            )  # fmt: skip
            return seed, *view

        for index, (seed, pixels, found) in readable(
            self.source, indices, read, self.max_tries, skipped
        ):
            keys.append(self.source.key(index))
            seeds.append(seed)
            images.append(pixels)
            objects.append(found)
        return host_batch(images, seeds, keys, skipped)._replace(objects=tuple(objects))

    def _draw_others(self, rng: np.random.Generator, count: int) -> list[Sample]:
        """Of those that can be read: a bad one is named when it is its turn."""
        found: list[Sample] = []
        for _ in range(count * self.max_tries):
            if len(found) == count:
                break
            try:
                found.append(self.source.read_objects(int(rng.integers(len(self.source)))))
            except BadImage:
                continue
        if len(found) < count:
            raise BadImage("there are no other images for a mosaic that can be read")
        return found


def object_batches(
    source: ObjectSource,
    *,
    data: DataOptions,
    views: ObjectViewOptions,
    img_size: int,
    has_masks: bool,
    run_seed: int,
    global_batch_size: int,
    accumulate_steps: int,
    rank: int,
    world_size: int,
    start_step: int,
    total_steps: int,
    device: torch.device,
    skipped: SkippedLog,
) -> Iterator[Batch]:
    """``accumulate_steps`` micro-batches for each of the steps ``start_step..total_steps - 1``.

    Images are float32 in 0..1 on ``device``. Order, seeds, the replacement of bad images and errors
    are those of ``train_batches``.
    """
    order = StepOrder(len(source), run_seed, global_batch_size, accumulate_steps, rank, world_size)
    max_tries = min(len(source), skipped.max_bad + 1)
    mosaics_end = views.mosaic_epochs * total_steps * global_batch_size / len(source)
    dataset = _TrainObjects(source, views, img_size, has_masks, run_seed, max_tries, mosaics_end)
    hosts = whole_batches(
        dataset, order, start_step, total_steps, workers_for(data, world_size), device, skipped
    )
    return (to_device(host, device) for host in hosts)


class Shown(NamedTuple):
    """An image of a batch of ``eval_objects``: its key, its own size (H, W), its ``size`` in the
    batch, and its objects in pixels of its own."""

    key: str
    own_size: tuple[int, int]
    size: tuple[int, int]
    truth: Annotated


class _WholeObjects(Dataset[tuple[HostBatch, list[Shown]]]):
    """Makes a batch of some images as they are shown to a detector, without those that are bad."""

    def __init__(self, source: ObjectSource, img_size: int) -> None:
        self.source, self.img_size = source, img_size

    def __getitem__(self, indices: range) -> tuple[HostBatch, list[Shown]]:
        skipped: list[tuple[str, str]] = []
        images: list[Tensor] = []
        shown: list[Shown] = []
        for wanted in indices:
            for index, (image, truth) in readable(
                self.source, [wanted], self.source.read_objects, 1, skipped
            ):
                pixels, size = fitted_image(image, self.img_size)
                images.append(pixels)
                own_size = (image.shape[0], image.shape[1])
                shown.append(Shown(self.source.key(index), own_size, size, truth))
        keys = [each.key for each in shown]
        return host_batch(images, [view_seed(0, 0, key) for key in keys], keys, skipped), shown


def eval_objects(
    source: ObjectSource,
    *,
    data: DataOptions,
    img_size: int,
    batch_size: int,
    device: torch.device,
    skipped: SkippedLog,
) -> Iterator[tuple[Batch, list[Shown]]]:
    """Every image of a source in its order, fitted into squares, and what is known of each.

    Bad images are left out.
    """
    starts = range(0, len(source), batch_size)
    parts = [range(start, min(start + batch_size, len(source))) for start in starts]
    # A worker that has nothing to do would still have to be started.
    num_workers = min(workers_for(data, world_size=1), len(parts) - 1)
    dataset = _WholeObjects(source, img_size)
    for host, shown in run_workers(dataset, parts, num_workers, device.type == "cuda"):
        skipped.add(host.skipped)
        if shown:
            yield to_device(host, device), shown
