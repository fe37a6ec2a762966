"""What a run will take: a step of its plan is tried, and the rest worked out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from limbeck.limits import num_cores

if TYPE_CHECKING:
    from limbeck.engine.distributed import Ranks
    from limbeck.models.encoder import Encoder
    from limbeck.recipes.run.plan import Plan

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
    memory_total: float
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
    plan: Plan, ranks: Ranks, num_steps: int = NUM_STEPS, most: int | None = None
) -> Forecast:
    """Time ``num_steps`` steps of real images, a few each or at most ``most``; the first one warms
    up."""
    import torch

    from limbeck.data.loader import workers_for
    from limbeck.recipes.run.resolved import resolve
    from limbeck.recipes.run.trial import NUM_IMAGES, memory_total, try_images

    config, images, facts = plan.config, plan.images, plan.student.facts
    resolved = resolve(
        len(images.train), facts.img_size[0], facts.architecture, config.optim, config.train
    )
    trial = try_images(plan, ranks, num_steps, most or NUM_IMAGES)
    images_per_step, trained = config.train.global_batch_size, trial.num_trained
    workers = workers_for(config.data, ranks.world_size)
    step_seconds = trial.step_seconds * images_per_step
    data_seconds = trial.data_seconds * images_per_step / max(1, workers)
    # On a CPU without a core to spare images and arithmetic wait for each other.
    is_full = ranks.device.type == "cpu" and torch.get_num_threads() + workers > num_cores()
    takes_turns = not workers or is_full
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
        memory=trial.memory(images_per_step // config.train.accumulate_steps),
        memory_total=memory_total(ranks),
        memory_of="GPU memory" if ranks.device.type == "cuda" else "memory",
        disk=4 * trained * copies + 200 * resolved.total_steps,
        disk_free=shutil.disk_usage(exists).free,
        can_write=os.access(exists, os.W_OK),
        teacher="none" if taught_by is None else describe(taught_by),
        student=describe(plan.student),
        losses=trial.losses,
        at_zero=trial.at_zero,
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


def bytes_said(count: float) -> str:
    """A number of bytes in words."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
