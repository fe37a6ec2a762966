"""Batches of images under corruptions: each image is decoded once for all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.data.corruptions import corrupt
from limbeck.data.loader import eval_batches, workers_for
from limbeck.data.options import DataOptions
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import Source, Subset
from limbeck.data.workers import run_workers
from limbeck.records import Batch

CLEAN = ("clean", 0)
"""The condition of images as they are."""
Condition = tuple[str, int]
"""A corruption and its severity, 1 to 5, or ``CLEAN``."""
MOST_BYTES = 2**30  # of decoded crops that are held at once: 7,000 of 224 px


class _Corrupted(Dataset[Tensor]):
    """Crops (n, 3, S, S) uint8 in memory, corrupted a batch at a time by whoever asks."""

    def __init__(self, crops: Tensor, keys: Sequence[str]) -> None:
        self.crops, self.keys = crops, keys

    def __getitem__(self, request: tuple[Condition, int, int]) -> Tensor:
        condition, start, stop = request
        images = self.crops[start:stop]
        if condition == CLEAN:
            return images
        views = [
            torch.from_numpy(corrupt(image.numpy(), *condition, key))
            for image, key in zip(images.permute(0, 2, 3, 1), self.keys[start:stop], strict=True)
        ]
        return torch.stack(views).permute(0, 3, 1, 2).contiguous()


def corrupted_batches(
    source: Source,
    conditions: Sequence[Condition],
    *,
    data: DataOptions,
    img_size: int,
    crop_ratio: float,
    batch_size: int,
    device: torch.device,
    skipped: SkippedLog,
) -> Iterator[tuple[Condition, Batch]]:
    """All images of a source under each condition: resized, cropped, then corrupted, in this order.

    Images are float32 in 0..1 on ``device``. They come in the source's order for every condition;
    of a source whose crops are more than a gibibyte, part by part. Bad ones are left out.
    """
    most = max(batch_size, MOST_BYTES // (3 * img_size**2))
    for first in range(0, len(source), most):
        part = Subset(source, range(first, min(first + most, len(source))))
        crops: list[Tensor] = []
        seen: list[Batch] = []
        for batch in eval_batches(
            part,
            data=data,
            img_size=img_size,
            crop_ratio=crop_ratio,
            batch_size=batch_size,
            device=torch.device("cpu"),
            skipped=skipped,
        ):
            crops.append((batch.images * 255).round().to(torch.uint8))
            seen.append(replace(batch, images=torch.empty(0), teacher_images=torch.empty(0)))
        if not seen:
            continue
        dataset = _Corrupted(torch.cat(crops), [key for batch in seen for key in batch.keys])
        crops.clear()
        stops = torch.tensor([len(batch.keys) for batch in seen]).cumsum(0).tolist()
        starts = [0, *stops[:-1]]
        asked = [(condition, place) for condition in conditions for place in range(len(seen))]
        requests = ((condition, starts[place], stops[place]) for condition, place in asked)
        num_workers = min(workers_for(data, world_size=1), len(asked) - 1)
        shown = run_workers(dataset, requests, num_workers, device.type == "cuda")
        for (condition, place), images in zip(asked, shown, strict=True):
            images = images.to(device, non_blocking=True).float().div_(255)
            yield condition, replace(seen[place], images=images, teacher_images=images)
