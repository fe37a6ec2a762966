"""``limbeck doctor``: scan all images and try one step, before a run costs hours.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from limbeck.config import options, to_plain
from limbeck.limits import memory_bytes, num_cores
from limbeck.recipes.run.checks import check_pretraining
from limbeck.recipes.run.options import DistillConfig
from limbeck.recipes.train.chain import check_chain
from limbeck.recipes.train.distill import check

if TYPE_CHECKING:
    from limbeck.data.scan import ScanReport
    from limbeck.engine.distributed import Ranks
    from limbeck.models.encoder import Encoder
    from limbeck.recipes.run.images import Images
    from limbeck.recipes.run.networks import Networks
    from limbeck.recipes.run.train import Plan

NUM_TRIED = 8  # images of the tried steps: enough to amortise a step, few enough for any machine
NUM_STEPS = 3
NUM_LISTED = 10
LONG = 86400.0  # seconds: a run of more than a day is not just "ready"


@options
class DoctorConfig(DistillConfig):
    """Check images, memory, disk and time for a run of 'limbeck distill' with the same options.

    Without the teacher that the method needs only options and images are checked.
    """


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


@dataclass(frozen=True)
class Diagnosis:
    """The scan, the forecast (None without a teacher), what is wrong and what to look at."""

    scan: ScanReport
    forecast: Forecast | None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    machine: list[str] = field(default_factory=list)
    """What it is, and what follows for precision, threads and loader processes."""


def doctor(config: DoctorConfig) -> Diagnosis:
    """Scan every image and, where a teacher is named or none is needed, try a step.

    A store in the teacher's place is read whole, and compared with these images.
    """
    check_pretraining(config)
    if config.chain:
        check_chain(config)
    is_taught = config.teacher.source is not None or config.targets.source is not None
    tries_step = is_taught or not _needs_teacher(config)
    if tries_step:
        check(config)
    from limbeck.data.scan import scan
    from limbeck.data.source import Chain
    from limbeck.engine.distributed import ranks_session
    from limbeck.engine.machine import build_unfit, describe
    from limbeck.recipes.run.images import open_images
    from limbeck.recipes.run.precision import settle, work_force
    from limbeck.recipes.run.resolved import fitting_batch

    with ranks_session(config.train.device, to_plain(config)) as ranks:
        machine = [describe(ranks.device)]
        config = settle(config, ranks, tell=machine.append)
        if len(machine) == 1:  # the precision was stated
            machine.append(work_force(config, ranks))
        images = open_images(config.data)
        everything = (
            Chain([images.whole, images.holdout]) if config.data.eval_root else images.whole
        )
        found = scan(everything, config.data, progress=_show_progress())
        problems, warnings = judge_images(found, images, config)
        batch = fitting_batch(len(images.train), config.train)
        config = replace(config, train=replace(config.train, global_batch_size=batch))
        forecast = None
        if tries_step and not problems:
            forecast = try_steps(config, images, ranks)
            problems += judge_forecast(forecast)
    warnings += filter(None, [build_unfit()])
    return Diagnosis(found, forecast, problems, warnings, machine)


def _needs_teacher(config: DoctorConfig) -> bool:
    from limbeck.recipes.run.networks import method_class, method_options

    needs_teacher: bool = method_options(config, method_class(config.method)).needs_teacher
    return needs_teacher


def judge_images(
    found: ScanReport, images: Images, config: DoctorConfig
) -> tuple[list[str], list[str]]:
    """What stops a run on these images, and what may surprise."""
    from limbeck.recipes.run.images import FEW_IMAGES, few_images
    from limbeck.recipes.run.resolved import fitting_batch

    notes = [*images.whole.notes, *(images.holdout.notes if config.data.eval_root else ())]
    problems, warnings = [], list(dict.fromkeys(notes))  # of one place for both, once
    num_bad, batch = len(found.bad), config.train.global_batch_size
    if num_bad > config.data.max_bad_ratio * found.num_images:
        problems.append(
            f"{num_bad} of {found.num_images} images can't be read, more than "
            f"--data.max-bad-ratio {config.data.max_bad_ratio:g} allows."
        )
    elif num_bad:
        warnings.append(f"{num_bad} images can't be read and will be skipped.")
    if len(images.train) < batch:
        fitted = fitting_batch(len(images.train), config.train)
        told = f"{len(images.train)} training images do not fill a batch of {batch}"
        if fitted > len(images.train):
            problems.append(f"{told}; add images, or lower --train.accumulate-steps.")
        else:
            warnings.append(
                f"{told}: a step will have {fitted} of them (--train.global-batch-size {fitted})."
            )
    if len(images.holdout) and (few := few_images(len(images.holdout))):
        warnings.append(few.strip())
    num_copies = sum(len(group) - 1 for group in found.duplicates)
    if num_copies:
        warnings.append(f"{num_copies} images are exact copies of others.")
    if len(images.train) < FEW_IMAGES:
        warnings.append(f"{len(images.train)} training images are few: expect less than from more.")
    counts = [count for count in found.class_counts.values() if count]
    if counts and max(counts) > 20 * min(counts):
        warnings.append(f"Classes are uneven: {min(counts)} to {max(counts)} images.")
    return problems, warnings


def judge_forecast(forecast: Forecast) -> list[str]:
    """What stops the run on this machine."""
    problems = []
    if forecast.memory > 0.95 * forecast.memory_total:
        problems.append(
            f"The run needs about {_bytes(forecast.memory)} of {forecast.memory_of} and there are "
            f"{_bytes(forecast.memory_total)}; raise --train.accumulate-steps."
        )
    if not forecast.can_write:
        problems.append("The run's folder can't be written; choose another --out.")
    if forecast.disk > forecast.disk_free:
        problems.append(
            f"The run needs about {_bytes(forecast.disk)} of disk and {_bytes(forecast.disk_free)} "
            "are free; free some or choose another --out."
        )
    return problems


def try_steps(config: DoctorConfig, images: Images, ranks: Ranks) -> Forecast:
    """Try a step of the run, or of every stage of a chain."""
    from limbeck.recipes.train.chain import rehearse, split_chain

    forecasts = [
        try_step(plan, nets, ranks) for nets, plan in rehearse(split_chain(config), images, ranks)
    ]
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
    plan: Plan,
    nets: Networks,
    ranks: Ranks,
    num_tried: int = NUM_TRIED,
    num_steps: int = NUM_STEPS,
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
        teacher=_describe_teacher(nets),
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


def _describe_teacher(nets: Networks) -> str:
    if nets.live_teacher is not None:
        return describe(nets.live_teacher.encoder)
    if nets.reader is None:
        return "none"
    source = nets.reader.manifest.teacher["facts"]["origin"].get("source", "a teacher")
    return f"none in memory: stored answers of {source} to {len(nets.reader):,} images"


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


def _show_progress() -> Callable[[int, int], None] | None:
    """A counter on the terminal; None where nobody is looking."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        end = "\n" if done == total else "\r"
        print(f"scanning images: {done:,} of {total:,}", end=end, file=sys.stderr)

    return show


def report(diagnosis: Diagnosis) -> str:
    """The diagnosis for people."""
    scan, forecast = diagnosis.scan, diagnosis.forecast
    told = [part for text in diagnosis.machine for part in text.split("; ")]
    lines = [f"{'' if place else 'machine':12}{part}" for place, part in enumerate(told)]
    lines += [
        f"images      {scan.num_readable:,} readable of {scan.num_images:,}, "
        f"{_bytes(scan.total_bytes)}",
        f"size        width {scan.width.min:.0f} to {scan.width.max:.0f} (median "
        f"{scan.width.median:.0f}), height {scan.height.min:.0f} to {scan.height.max:.0f} (median "
        f"{scan.height.median:.0f}) px",
        f"formats     {_counts(scan.formats)}; modes {_counts(scan.modes)}",
    ]
    if scan.class_counts:
        lines.append(f"classes     {len(scan.class_counts)}: {_counts(scan.class_counts)}")
    lines += [f"bad         {key}: {reason}" for key, reason in scan.bad[:NUM_LISTED]]
    if len(scan.bad) > NUM_LISTED:
        lines.append(f"bad         and {len(scan.bad) - NUM_LISTED} more")
    lines += [f"damaged     {key}" for key in scan.damaged[:NUM_LISTED]]
    lines += [f"same bytes  {', '.join(group)}" for group in scan.duplicates[:NUM_LISTED]]
    if forecast:
        lines += [
            f"student     {forecast.student}",
            f"teacher     {forecast.teacher}",
            f"one step    {forecast.step_seconds:.2f} s of arithmetic, "
            f"{forecast.data_seconds:.2f} s of images in the background; losses "
            + ", ".join(f"{name} {value:.3f}" for name, value in forecast.losses.items())
            + _nothing(forecast.at_zero),
            f"whole run   {forecast.total_steps:,} steps, about "
            f"{_duration(forecast.total_seconds)}",
            f"memory      about {_bytes(forecast.memory)} of {_bytes(forecast.memory_total)} "
            f"{forecast.memory_of}",
            f"disk        about {_bytes(forecast.disk)}; {_bytes(forecast.disk_free)} are free",
        ]
    lines += [f"WARNING     {text}" for text in diagnosis.warnings]
    lines += [f"PROBLEM     {text}" for text in diagnosis.problems]
    if not diagnosis.problems:
        lines.append(
            _ready(forecast)
            if forecast
            else "The images are ready; add --teacher (or --targets) to try a step."
        )
    return "\n".join(_folded(line) for line in lines)


def _ready(forecast: Forecast) -> str:
    """That it fits, and, where it takes long, what makes it shorter."""
    if forecast.total_seconds <= LONG:
        return "Ready."
    share = LONG / forecast.total_seconds
    ways = [
        f"{100 * share:.2g} % of the --train.epochs take a day",
        "a smaller --student.img-size or student",
    ]
    if forecast.data_seconds > forecast.step_seconds:
        ways.append("smaller images on the disk, or more --data.num-workers, which it waits for")
    elif not forecast.teacher.startswith("none"):
        ways.append("a smaller teacher, or its answers stored once (limbeck store-targets)")
    if forecast.memory_of != "GPU memory":
        ways.append("a GPU")
    return (
        f"It fits on this machine, but takes {_duration(forecast.total_seconds)}. Shorter: "
        f"{'; '.join(ways)}."
    )


def _folded(line: str) -> str:
    """Within the width of a terminal; what is below the first line begins where its text does."""
    indent = " " * (12 if line[11:12] == " " else 0)
    return textwrap.fill(
        line, 80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _nothing(at_zero: float | None) -> str:
    return "" if at_zero is None else f" (predicting nothing gives {at_zero:.3f})"


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:8]]
    return ", ".join(shown) + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
