"""What a run will take: a step of its plan is tried, and the rest worked out."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from limbeck.limits import memory_bytes, num_cores

if TYPE_CHECKING:
    from limbeck.engine.distributed import Ranks
    from limbeck.models.encoder import Encoder
    from limbeck.recipes.run.train import Plan

NUM_TRIED = 8  # images of the tried steps: enough to amortise a step, few enough for any machine
NUM_STEPS = 3


@dataclass(frozen=True)
class Forecast:
    """What the run will take; from one measured step of a few images, so about right, not exact.

    Of a chain: steps, time and disk of all stages together, a step's time on the average, and the
    memory and losses of the stage that needs most.

    Bytes: ``memory`` of this process (or of the GPU, where there is one), ``disk`` of the run's
    folder, ``disk_free`` where it will be. ``step_seconds`` of a whole optimiser step, of which
    the images alone take ``data_seconds`` when nothing else runs.
    """

    total_steps: int
    step_seconds: float
    data_seconds: float
    total_seconds: float
    memory: int
    memory_total: int
    memory_of: str
    disk: int
    disk_free: int
    can_write: bool
    teacher: str
    student: str
    losses: dict[str, float]
    at_zero: float | None = None
    """What the losses would add up to if the student predicted nothing, where the method knows."""


def judge_forecast(forecast: Forecast) -> list[str]:
    """What stops the run on this machine."""
    problems = []
    if forecast.memory > 0.95 * forecast.memory_total:
        problems.append(
            f"The run needs about {bytes_said(forecast.memory)} of {forecast.memory_of} and there "
            f"are {bytes_said(forecast.memory_total)}; raise --train.accumulate-steps."
        )
    if not forecast.can_write:
        problems.append("The run's folder can't be written; choose another --out.")
    if forecast.disk > forecast.disk_free:
        problems.append(
            f"The run needs about {bytes_said(forecast.disk)} of disk and "
            f"{bytes_said(forecast.disk_free)} are free; free some or choose another --out."
        )
    return problems


def together(forecasts: Sequence[Forecast]) -> Forecast:
    """The forecast of the stages of a chain, or of the one run."""
    if len(forecasts) == 1:
        return forecasts[0]
    total_steps = sum(each.total_steps for each in forecasts)

    def mean(name: str) -> float:
        spent = sum(getattr(each, name) * each.total_steps for each in forecasts)
        return spent / total_steps

    return replace(
        max(forecasts, key=lambda each: each.memory),
        total_steps=total_steps,
        step_seconds=mean("step_seconds"),
        data_seconds=mean("data_seconds"),
        total_seconds=sum(each.total_seconds for each in forecasts),
        disk=sum(each.disk for each in forecasts),
        teacher=forecasts[0].teacher,
        student="; then ".join(each.student for each in forecasts),
    )


def try_step(
    plan: Plan, ranks: Ranks, num_tried: int = NUM_TRIED, num_steps: int = NUM_STEPS
) -> Forecast:
    """Time ``num_steps`` steps of ``num_tried`` real images each; the first one warms up."""
    import torch

    from limbeck.data.loader import workers_for
    from limbeck.data.skipped import SkippedLog
    from limbeck.methods.teacher import autocast
    from limbeck.recipes.run.resolved import resolve

    config, images, facts = plan.config, plan.images, plan.student.facts
    resolved = resolve(
        len(images.train), facts.img_size[0], facts.architecture, config.optim, config.train
    )
    assert config.train.precision != "auto", "settled before"
    count = min(num_tried, config.train.global_batch_size)
    small = replace(
        config,
        train=replace(config.train, global_batch_size=count, accumulate_steps=1),
        data=replace(config.data, num_workers=0),
    )
    skipped = SkippedLog(None, len(images.train), max_bad_ratio=1.0)
    distiller = plan.module.to(ranks.device).train()
    stream = plan.stream(small, skipped, 0, num_steps)
    idle = _memory_in_use(ranks)
    data_times, step_times = [], []
    losses: dict[str, float] = {}
    at_zero = None
    for _ in range(num_steps):
        start = time.perf_counter()
        batch = next(stream)
        ready = time.perf_counter()
        with autocast(ranks.device, config.train.precision):
            result = distiller(batch)
        result.total.backward()
        losses = {name: float(value) for name, value in result.parts.items()}  # waits for the GPU
        at_zero = None if result.at_zero is None else float(result.at_zero)
        data_times.append(ready - start)
        step_times.append(time.perf_counter() - ready)
    per_image = max(0, _memory_in_use(ranks) - idle) / count
    images_per_step = config.train.global_batch_size
    workers = workers_for(config.data, ranks.world_size)
    # The least: whatever else the machine does takes longer, never shorter.
    step_seconds = min(step_times[1:]) / count * images_per_step
    data_seconds = min(data_times[1:]) / count * images_per_step / max(1, workers)
    # On a CPU without a core to spare images and arithmetic wait for each other.
    is_full = ranks.device.type == "cpu" and torch.get_num_threads() + workers > num_cores()
    takes_turns = not workers or is_full
    trained = sum(each.numel() for each in distiller.parameters() if each.requires_grad)
    # Weights and AdamW's two moments, perhaps the average, in fp32; a new checkpoint is written
    # before the old one goes. Then the finished student and some logs.
    copies = 2 * (4 if config.train.ema_decay else 3) + 1
    taught_by = getattr(getattr(plan.module, "teacher", None), "encoder", None)
    here = config.out.absolute()
    exists = next(path for path in [here, *here.parents] if path.exists())
    return Forecast(
        total_steps=resolved.total_steps,
        step_seconds=step_seconds,
        data_seconds=data_seconds,
        total_seconds=resolved.total_steps
        * (step_seconds + data_seconds if takes_turns else max(step_seconds, data_seconds)),
        memory=int(
            idle + per_image * images_per_step / config.train.accumulate_steps + 12 * trained
        ),
        memory_total=_memory_total(ranks),
        memory_of="GPU memory" if ranks.device.type == "cuda" else "memory",
        disk=4 * trained * copies + 200 * resolved.total_steps,
        disk_free=shutil.disk_usage(exists).free,
        can_write=os.access(exists, os.W_OK),
        teacher="none" if taught_by is None else describe(taught_by),
        student=describe(plan.student),
        losses=losses,
        at_zero=at_zero,
    )


def describe(encoder: Encoder) -> str:
    """An encoder in one line."""
    facts = encoder.facts
    heads = "/".join(map(str, dict.fromkeys(facts.num_heads)))
    name = facts.architecture.get("name", facts.origin["source"])
    decoder = f"a decoder of {facts.decoder_depth} blocks, width {facts.decoder_dim}, "
    return (
        f"{name}: {facts.depth} blocks, width {facts.embed_dim}, "
        f"{heads} heads, {facts.img_size[0]} px, {decoder if facts.decoder_depth else ''}"
        f"{sum(each.numel() for each in encoder.parameters()) / 1e6:.1f} M parameters"
    )


def _memory_in_use(ranks: Ranks) -> int:
    """Largest use so far, in bytes: of the GPU, or of this process; 0 where nobody tells it."""
    import torch

    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated(ranks.device)
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _memory_total(ranks: Ranks) -> int:
    import torch

    if ranks.device.type == "cuda":
        return torch.cuda.get_device_properties(ranks.device).total_memory
    return memory_bytes() or sys.maxsize


def bytes_said(count: float) -> str:
    """A number of bytes in words."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
