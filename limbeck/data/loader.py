"""From a source to batches on the device, the same for any number of workers, ranks and restarts.

The order of samples is a pure function of (run seed, epoch) and a view one of (run seed, epoch,
key), so there is no reader state: resuming at a step is starting at it. One worker call makes one
whole micro-batch; images stay uint8 until they are on the device.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.data.options import DataOptions, ReleasedViews, ViewOptions
from limbeck.data.order import StepOrder
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import BadImage, Source
from limbeck.data.target_store.located import VIEW_SEEDS, LocatedTargets
from limbeck.data.view_makers import MakeView, eval_maker, view_maker
from limbeck.data.views import DrawNoise, View, erase, view_noise, view_seed
from limbeck.data.workers import run_workers
from limbeck.errors import RunError, UserError
from limbeck.limits import num_cores
from limbeck.records import Batch, Objects

T = TypeVar("T")


class HostBatch(NamedTuple):
    """What a worker hands over: uint8 images and plain tensors, which can be pinned."""

    student: Tensor  # [B * V, 3, S, S] uint8
    teacher: Tensor | None  # None: the same as student
    erase_boxes: Tensor  # [B * V, 4] int64
    noise_seeds: Tensor  # [B * V] int64, of what the boxes are filled with
    labels: Tensor | None  # [B] int64, of scenes [B, S, S] uint8
    view_seeds: Tensor  # [B * V] int64
    keys: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    local: Tensor | None = None  # [B * local views, 3, s, s] uint8
    targets: dict[str, Tensor] | None = None  # [B, ...] each, as a store has them
    objects: tuple[Objects, ...] | None = None


@dataclass(eq=False)
class _MicroBatches(Dataset[HostBatch]):
    """Makes a whole batch from (epoch, indices); a bad sample is replaced by the next readable one.

    ``make_views`` makes the views of a decoded image, ``make_locals`` further small ones.
    ``max_tries`` bounds the search: a longer row of bad samples is more than a run accepts anyway.
    With ``targets`` the views are theirs, used again after ``num_views`` epochs.
    """

    source: Source
    max_image_pixels: int
    make_views: Sequence[MakeView]
    run_seed: int | None
    max_tries: int
    make_locals: Sequence[MakeView] = ()
    targets: LocatedTargets | None = None

    def __post_init__(self) -> None:
        if self.targets is not None:
            self.run_seed = self.targets.seed

    def __getitem__(self, request: tuple[int, list[int]]) -> HostBatch:
        epoch, indices = request
        if self.targets is not None:
            epoch %= self.targets.num_views
        used: list[int] = []
        views: list[View] = []
        locals_: list[View] = []
        labels: list[int | None] = []
        keys: list[str] = []
        seeds: list[int] = []
        skipped: list[tuple[str, str]] = []
        for index, image in readable(self.source, indices, self._image, self.max_tries, skipped):
            key = self.source.key(index)
            for number, make in enumerate((*self.make_views, *self.make_locals)):
                seed = self._seed(index, epoch, key, number)
                if number < len(self.make_views):
                    views.append(make(image, seed))
                    seeds.append(seed)
                else:
                    locals_.append(make(image, seed))
            labels.append(self.source.label(index))
            keys.append(key)
            used.append(index)
        return stack_views(
            views, labels=labels, seeds=seeds, keys=keys, skipped=skipped, locals_=locals_,
            targets=self._targets(used, epoch),
        )  # fmt: skip

    def _image(self, index: int) -> np.ndarray:
        if self.targets is not None and index not in self.targets:
            raise BadImage("it could not be read when its targets were stored")
        return self.make_views[0].decode(self.source.read(index).data, self.max_image_pixels)

    def _seed(self, index: int, epoch: int, key: str, number: int) -> int:
        if self.run_seed is not None:
            return view_seed(self.run_seed, epoch, key, number)
        assert self.targets is not None
        return int(self.targets.read([index], epoch)[VIEW_SEEDS])

    def _targets(self, indices: list[int], epoch: int) -> dict[str, Tensor] | None:
        if self.targets is None:
            return None
        records = self.targets.read(indices, epoch)
        return {name: array for name, array in records.items() if name != VIEW_SEEDS}


def readable(
    source: Source,
    indices: Sequence[int],
    read: Callable[[int], T],
    max_tries: int,
    skipped: list[tuple[str, str]],
) -> Iterator[tuple[int, T]]:
    """(index, what ``read`` gives of it), of a sample that is bad of the next that is readable.

    None after ``max_tries``. What is bad is added to ``skipped``, with the reason.
    """
    for first in indices:
        for index in range(first, first + max_tries):
            index %= len(source)
            try:
                sample = read(index)
            except BadImage as error:
                skipped.append((source.key(index), str(error)))
                continue
            yield index, sample
            break


def stack_views(
    views: Sequence[View],
    *,
    labels: Sequence[int | None],
    seeds: Sequence[int],
    keys: Sequence[str],
    skipped: Sequence[tuple[str, str]],
    locals_: Sequence[View] = (),
    targets: dict[str, Tensor] | None = None,
) -> HostBatch:
    """The views of samples as one batch of the host."""
    # Of several views none is the undisturbed one: student and teacher see the same.
    is_single = len(views) == len(keys)
    is_disturbed = is_single and any(view.student is not view.teacher for view in views)
    known = [label for label in labels if label is not None]
    return HostBatch(
        student=_stack([view.student for view in views]),
        teacher=_stack([view.teacher for view in views]) if is_disturbed else None,
        local=_stack([view.student for view in locals_]) if locals_ else None,
        erase_boxes=torch.tensor([view.erase_box for view in views], dtype=torch.int64),
        noise_seeds=torch.tensor([view.noise_seed for view in views], dtype=torch.int64),
        labels=torch.tensor(known) if known and len(known) == len(labels) else None,
        view_seeds=torch.tensor(seeds, dtype=torch.int64),
        keys=tuple(keys),
        skipped=tuple(skipped),
        targets=targets,
    )


def _stack(images: list[Tensor]) -> Tensor:
    return torch.stack(images) if images else torch.empty(0, 3, 0, 0, dtype=torch.uint8)


def train_batches(
    source: Source,
    *,
    data: DataOptions,
    views: ViewOptions | ReleasedViews,
    other_views: Sequence[ViewOptions] = (),
    local_views: Sequence[tuple[ViewOptions, int]] = (),
    img_size: int,
    run_seed: int,
    global_batch_size: int,
    accumulate_steps: int,
    rank: int,
    world_size: int,
    start_step: int,
    total_steps: int,
    device: torch.device,
    erase_mean: tuple[float, float, float],
    erase_std: tuple[float, float, float],
    skipped: SkippedLog,
    targets: LocatedTargets | None = None,
) -> Iterator[Batch]:
    """``accumulate_steps`` micro-batches for each of the steps ``start_step..total_steps - 1``.

    Images are float32 in 0..1 on ``device`` (erased boxes hold normal noise, which leaves 0..1).
    With ``other_views`` each image is seen in so many further views, with ``local_views`` in small
    ones, all of one size in pixels (``Batch`` says in which order); it is decoded once.
    ``targets``: what a store has for the source; the views are then its own.
    Raises UserError at once for a batch that does not fit the data or the processes, and RunError
    later for too many bad images or a lost worker.
    """
    order = StepOrder(len(source), run_seed, global_batch_size, accumulate_steps, rank, world_size)
    if isinstance(views, ReleasedViews) and (other_views or local_views):
        raise UserError("The released views are one per image, and the method asks for several.")
    make_views = [view_maker(each, img_size) for each in (views, *other_views)]
    dataset = _MicroBatches(
        source,
        data.max_image_pixels,
        make_views,
        run_seed,
        max_tries=min(len(source), skipped.max_bad + 1),
        make_locals=[view_maker(*each) for each in local_views],
        targets=targets,
    )
    hosts = whole_batches(
        dataset, order, start_step, total_steps, workers_for(data, world_size), device, skipped
    )
    draw_noise = make_views[0].draw_noise
    return (to_device(host, device, erase_mean, erase_std, draw_noise) for host in hosts)


def whole_batches(
    dataset: Dataset[HostBatch],
    order: StepOrder,
    start_step: int,
    total_steps: int,
    num_workers: int,
    device: torch.device,
    skipped: SkippedLog,
) -> Iterator[HostBatch]:
    """The micro-batches of an order that ``dataset`` makes, each with as many samples as it asks.

    Raises RunError for too many bad images and where there are none to replace them.
    """
    requests = order.micro_batches(start_step, total_steps)
    for host in run_workers(dataset, requests, num_workers, device.type == "cuda"):
        skipped.add(host.skipped)
        if len(host.keys) < order.micro_batch_size:
            raise RunError(
                "No readable image is left to replace the bad ones: "
                f"{host.skipped[0][0]} ({host.skipped[0][1]}) and those that follow it."
            )
        yield host


def eval_batches(
    source: Source,
    *,
    data: DataOptions,
    img_size: int,
    crop_ratio: float = 0.875,
    batch_size: int,
    device: torch.device,
    skipped: SkippedLog,
) -> Iterator[Batch]:
    """The whole source in its order, once, in centre crops; bad images are left out.

    Labels and keys stay beside their images; ``view_seeds`` are those of run seed 0 and epoch 0.
    """
    dataset = _MicroBatches(
        source, data.max_image_pixels, [eval_maker(img_size, crop_ratio)], run_seed=0, max_tries=1
    )
    starts = range(0, len(source), batch_size)
    requests = ((0, list(range(s, min(s + batch_size, len(source))))) for s in starts)
    # A worker that has nothing to do would still have to be started.
    num_workers = min(workers_for(data, world_size=1), len(starts) - 1)
    for host in run_workers(dataset, requests, num_workers, device.type == "cuda"):
        skipped.add(host.skipped)
        if host.keys:
            yield to_device(host, device)


def to_device(
    host: HostBatch,
    device: torch.device,
    erase_mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    erase_std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    draw_noise: DrawNoise = view_noise,
) -> Batch:
    """The batch for a method: floats in 0..1 on the device, with the erased boxes filled."""
    targets = host.targets and {
        name: array.to(device, non_blocking=True) for name, array in host.targets.items()
    }
    images = _to_float(host.student, device)
    teacher_images = images if host.teacher is None else _to_float(host.teacher, device)
    return Batch(
        images=erase(images, host.erase_boxes, host.noise_seeds, erase_mean, erase_std, draw_noise),
        teacher_images=teacher_images,
        labels=None if host.labels is None else host.labels.to(device, non_blocking=True).long(),
        keys=tuple(host.keys),  # pinning makes lists of tuples
        view_seeds=host.view_seeds.to(device, non_blocking=True),
        local_images=None if host.local is None else _to_float(host.local, device),
        targets=targets,
        objects=host.objects and tuple(_moved(each, device) for each in host.objects),
    )


def _moved(objects: Objects, device: torch.device) -> Objects:
    masks = None if objects.masks is None else objects.masks.to(device)
    return replace(
        objects, boxes=objects.boxes.to(device), classes=objects.classes.to(device), masks=masks
    )


def _to_float(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device, non_blocking=True).float().div_(255)


def workers_for(data: DataOptions, world_size: int) -> int:
    """Loader processes: those asked for, or what the cores leave to this rank."""
    if data.num_workers is not None:
        return data.num_workers
    # torchrun tells how many of the ranks share this machine.
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return max(0, num_cores() // local_ranks - 1)
