"""A few images of a plan are tried, and leave no trace: what time and memory they take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks, gather
from limbeck.errors import UserError
from limbeck.evaluation.cost import peak_memory_mib, reset_peak_memory
from limbeck.limits import memory_bytes
from limbeck.methods.teacher import autocast
from limbeck.recipes.run.plan import Plan

NUM_IMAGES = 8  # enough to amortise a step, few enough for any machine
SHARE = 0.85  # of the memory that a run may take: sizes of objects and of a cache are not foreseen


@dataclass(frozen=True)
class Trial:
    """``memory_idle`` before images came, ``memory_per_image`` while they are learnt from, in bytes
    (0 where the system does not tell); seconds an image, of reading it and of learning from it."""

    memory_idle: int
    memory_per_image: float
    num_trained: int
    data_seconds: float
    step_seconds: float
    losses: dict[str, float]
    at_zero: float | None

    def memory(self, num_images: int) -> int:
        """Bytes that micro-batches of so many take, with gradients and AdamW's moments."""
        return int(self.memory_idle + self.memory_per_image * num_images + 12 * self.num_trained)


def try_images(plan: Plan, ranks: Ranks, num_steps: int, most: int = NUM_IMAGES) -> Trial:
    """Learn from ``num_steps`` batches of real images, at least two; the first warms up.

    They are the plan's largest where it knows them, and at most ``most`` a batch.
    """
    config, images = plan.config, plan.images
    assert config.train.precision != "auto", "settled before"
    count = min(most, config.train.global_batch_size // ranks.world_size)
    small = replace(
        config,
        train=replace(config.train, global_batch_size=count * ranks.world_size, accumulate_steps=1),
        data=replace(config.data, num_workers=0),
    )
    skipped = SkippedLog(None, len(images.train), max_bad_ratio=1.0)
    module = plan.module.to(ranks.device)
    stream = (plan.largest or plan.stream)(small, skipped, 0, num_steps)
    data_times, step_times = [], []
    with _undone(module, ranks.device):
        reset_peak_memory(ranks.device)
        idle = _peak(ranks.device)
        for _ in range(num_steps):
            start = time.perf_counter()
            batch = next(stream)
            ready = time.perf_counter()
            with autocast(ranks.device, config.train.precision):
                result = module(batch)
            result.total.backward()
            # Numbers wait for the GPU.
            losses = {name: float(value) for name, value in result.parts.items()}
            at_zero = None if result.at_zero is None else float(result.at_zero)
            data_times.append(ready - start)
            step_times.append(time.perf_counter() - ready)
        return Trial(
            memory_idle=idle,
            memory_per_image=max(0, _peak(ranks.device) - idle) / count,
            num_trained=sum(each.numel() for each in module.parameters() if each.requires_grad),
            # The least: whatever else the machine does takes longer, never shorter.
            data_seconds=min(data_times[1:]) / count,
            step_seconds=min(step_times[1:]) / count,
            losses=losses,
            at_zero=at_zero,
        )


def fewest_parts(plan: Plan, ranks: Ranks) -> int:
    """Micro-batches in which a step's images fit the memory: as few as there can be, on all ranks.

    By the memory that a few images take. Raises UserError where one image alone does not fit.
    """
    trial, count = try_images(plan, ranks, 2), plan.config.train.global_batch_size
    own, free = count // ranks.world_size, SHARE * memory_total(ranks)
    least = 2 if plan.config.train.global_batch_size > 1 else 1  # what mixes images takes pairs
    sizes = [size for size in range(own, 0, -1) if not own % size and size >= min(least, own)]
    fitting = next((size for size in sizes if trial.memory(size) <= free), 0)
    smallest = min(gather(fitting))
    if not smallest:
        raise UserError(
            f"{sizes[-1]} images take about {trial.memory(sizes[-1]) / 2**30:.1f} GiB of memory, "
            f"and of {memory_total(ranks) / 2**30:.1f} there are {100 * SHARE:.0f} % for it; lower "
            "--img-size, or choose a smaller student or teacher."
        )
    return own // smallest


def memory_total(ranks: Ranks) -> float:
    """Bytes of the GPU, or this process's share of the machine; infinite where it is silent."""
    if ranks.device.type == "cuda":
        return torch.cuda.get_device_properties(ranks.device).total_memory
    return (memory_bytes() or float("inf")) / ranks.world_size


def _peak(device: torch.device) -> int:
    return int((peak_memory_mib(device) or 0) * 2**20)


@contextmanager
def _undone(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Trains the module, and puts back buffers, mode and random numbers; without gradients."""
    kept = {name: value.clone() for name, value in module.named_buffers()}
    was_training = {each: each.training for each in module.modules()}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        module.train()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in module.named_buffers():
                    value.copy_(kept[name])
            for each, mode in was_training.items():
                each.training = mode
            module.zero_grad(set_to_none=True)
