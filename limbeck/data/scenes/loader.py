"""From scenes to batches on the device, with every promise of ``limbeck.data.loader``."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.data.decode import decode_image
from limbeck.data.loader import HostBatch, readable, to_device, whole_batches, workers_for
from limbeck.data.options import DataOptions
from limbeck.data.order import StepOrder
from limbeck.data.scenes.options import SceneViewOptions
from limbeck.data.scenes.scene import Scenes
from limbeck.data.scenes.views import train_scene
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import Source
from limbeck.data.views import view_seed
from limbeck.data.workers import run_workers
from limbeck.records import Batch


class _TrainScenes(Dataset[HostBatch]):
    """Makes a whole batch from (epoch, indices), one view of each scene."""

    def __init__(
        self, scenes: Scenes, views: SceneViewOptions, img_size: int, run_seed: int, max_tries: int
    ) -> None:
        self.scenes, self.views, self.img_size = scenes, views, img_size
        self.run_seed, self.max_tries = run_seed, max_tries

    def __getitem__(self, request: tuple[int, list[int]]) -> HostBatch:
        epoch, indices = request
        skipped: list[tuple[str, str]] = []
        images: list[Tensor] = []
        labels: list[Tensor] = []
        seeds: list[int] = []
        keys: list[str] = []
        found = readable(self.scenes, indices, self.scenes.read_scene, self.max_tries, skipped)
        for index, (image, label_map) in found:
            keys.append(self.scenes.key(index))
            seeds.append(view_seed(self.run_seed, epoch, keys[-1]))
            pixels, cropped = train_scene(image, label_map, seeds[-1], self.views, self.img_size)
            images.append(pixels)
            labels.append(cropped)
        return host_batch(images, seeds, keys, skipped, labels)


class _WholeScenes(Dataset[HostBatch]):
    """Makes a batch of one sample at its own size; an empty one of a bad sample."""

    def __init__(self, source: Source, max_image_pixels: int) -> None:
        self.source, self.max_image_pixels = source, max_image_pixels

    def __getitem__(self, index: int) -> HostBatch:
        skipped: list[tuple[str, str]] = []
        images, labels, keys = [], [], []
        for _, (image, label_map) in readable(self.source, [index], self._read, 1, skipped):
            images.append(torch.from_numpy(image).permute(2, 0, 1).contiguous())
            labels += [] if label_map is None else [torch.from_numpy(label_map)]
            keys.append(self.source.key(index))
        seeds = [view_seed(0, 0, key) for key in keys]
        return host_batch(images, seeds, keys, skipped, labels)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        if isinstance(self.source, Scenes):
            return self.source.read_scene(index)
        return decode_image(self.source.read(index).data, self.max_image_pixels), None


def host_batch(
    images: list[Tensor],
    seeds: list[int],
    keys: list[str],
    skipped: list[tuple[str, str]],
    labels: Sequence[Tensor] = (),
) -> HostBatch:
    """Views of scenes, (3, H, W) uint8 of one size, as a batch of the host."""
    number = len(images)
    return HostBatch(
        student=torch.stack(images) if images else torch.empty(0, 3, 0, 0, dtype=torch.uint8),
        teacher=None,
        erase_boxes=torch.zeros(number, 4, dtype=torch.int64),
        noise_seeds=torch.zeros(number, dtype=torch.int64),
        labels=torch.stack(tuple(labels)) if labels else None,
        view_seeds=torch.tensor(seeds, dtype=torch.int64),
        keys=tuple(keys),
        skipped=tuple(skipped),
    )


def scene_batches(
    scenes: Scenes,
    *,
    data: DataOptions,
    views: SceneViewOptions,
    img_size: int,
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

    Images are float32 in 0..1 on ``device``, labels (B, S, S) int64 with ``IGNORE``. Order, seeds,
    the replacement of bad scenes and errors are those of ``train_batches``.
    """
    order = StepOrder(len(scenes), run_seed, global_batch_size, accumulate_steps, rank, world_size)
    max_tries = min(len(scenes), skipped.max_bad + 1)
    hosts = whole_batches(
        _TrainScenes(scenes, views, img_size, run_seed, max_tries), order, start_step, total_steps,
        workers_for(data, world_size), device, skipped,
    )  # fmt: skip
    return (to_device(host, device) for host in hosts)


def eval_scenes(
    source: Source, *, data: DataOptions, device: torch.device, skipped: SkippedLog
) -> Iterator[Batch]:
    """Every sample of a source in its order, each a batch of its own at its own size.

    Labels (1, H, W) where the source has scenes, else None. Bad samples are left out.
    """
    dataset = _WholeScenes(source, data.max_image_pixels)
    # A worker that has nothing to do would still have to be started.
    num_workers = min(workers_for(data, world_size=1), len(source) - 1)
    indices = range(len(source))
    for host in run_workers(dataset, indices, num_workers, device.type == "cuda"):
        skipped.add(host.skipped)
        if host.keys:
            yield to_device(host, device)
