"""``limbeck doctor``: scan all images and try one step, before a run costs hours."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from limbeck.config import options, to_plain
from limbeck.data.options import DataOptions
from limbeck.recipes.look.forecast import Forecast, bytes_said, judge_forecast, together, try_step
from limbeck.recipes.run.checks import check_pretraining
from limbeck.recipes.run.options import DistillConfig, FinetuneConfig
from limbeck.recipes.train import detect, distill, finetune, segment
from limbeck.recipes.train.chain import check_chain, rehearse, split_chain
from limbeck.recipes.train.options import DetectConfig, SegmentConfig

if TYPE_CHECKING:
    from limbeck.data.scan import ScanReport
    from limbeck.data.scenes.describe import SceneReport
    from limbeck.data.scenes.objects.describe import ObjectReport
    from limbeck.engine.distributed import Ranks
    from limbeck.recipes.run.images import Images

NUM_LISTED = 10
LONG = 86400.0  # seconds: a run of more than a day is not just "ready"

Config: TypeAlias = DistillConfig | FinetuneConfig | SegmentConfig | DetectConfig


@options
class DoctorConfig(DistillConfig):
    """Check images, memory, disk and time for a run of 'limbeck distill' with the same options.

    Without the teacher that the method needs only options and images are checked.
    """


@options
class DoctorFinetuneConfig(FinetuneConfig):
    """Check images, memory, disk and time for a run of 'limbeck finetune' with the same options.

    Without a student only options and images are checked.
    """


@options
class DoctorSegmentConfig(SegmentConfig):
    """Check images, masks, memory, disk and time for a run of 'limbeck segment' with the same
    options.

    Without a student only options, images and masks are checked.
    """


@options
class DoctorDetectConfig(DetectConfig):
    """Check images, boxes, memory, disk and time for a run of 'limbeck detect' with the same
    options; the step that is tried is of the images with the most objects.

    Without a student only options, images and boxes are checked.
    """

    examples: Path | None = None
    """A folder for five images with their boxes drawn in."""


@dataclass(frozen=True)
class Diagnosis:
    """The scan, the forecast (None where no step could be tried), what is wrong and what to look
    at. Of annotated images the scan is of those to train on, and ``held_out`` of the others."""

    scan: ScanReport | SceneReport | ObjectReport
    forecast: Forecast | None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    machine: list[str] = field(default_factory=list)
    """What it is, and what follows for precision, threads and loader processes."""
    held_out: SceneReport | ObjectReport | None = None
    missing: str = ""
    """What to name so that a step can be tried."""


def doctor(config: Config) -> Diagnosis:
    """Scan every image (and mask) and, where all networks are named, try a step of the run that the
    config is of.

    A store in the teacher's place is read whole, and compared with these images.
    """
    missing = _check(config)
    from limbeck.engine.distributed import ranks_session
    from limbeck.engine.machine import build_unfit, describe
    from limbeck.recipes.run.budget import choose_student
    from limbeck.recipes.run.precision import settle, work_force
    from limbeck.recipes.run.resolved import fitting_batch

    with ranks_session(config.train.device, to_plain(config)) as ranks:
        machine = [describe(ranks.device)]
        if not missing:
            config = choose_student(config, ranks, lambda own: [own], tell=machine.append)
        told = len(machine)
        config = settle(config, ranks, tell=machine.append)
        if len(machine) == told:  # the precision was stated
            machine.append(work_force(config, ranks))
        images, found = _look(config)
        found.warnings.extend(filter(None, [build_unfit()]))
        batch = fitting_batch(len(images.train), config.train)
        config = replace(config, train=replace(config.train, global_batch_size=batch))
        forecast = None
        if not missing and not found.problems:
            forecast = together([*_forecasts(config, images, ranks)])
            found.problems.extend(judge_forecast(forecast))
    return replace(found, forecast=forecast, machine=machine, missing=missing)


def _check(config: Config) -> str:
    """Raise UserError for what is wrong with the options; returns what they lack for a step."""
    if isinstance(config, DetectConfig):
        detect.check(config, needs_student=False)
    elif isinstance(config, SegmentConfig):
        segment.check(config, needs_student=False)
    elif isinstance(config, FinetuneConfig):
        finetune.check(config, needs_student=False)
    else:
        check_pretraining(config)
        if config.chain:
            check_chain(config)
        if config.teacher.source is None and config.targets.source is None:
            from limbeck.recipes.run.networks import method_class, method_options

            if method_options(config, method_class(config.method)).needs_teacher:
                return "--teacher (or --targets)"
        distill.check(config)
        return ""
    return "" if config.student else "--student"


def _look(config: Config) -> tuple[Images, Diagnosis]:
    if isinstance(config, DetectConfig):
        return _look_at_objects(config)
    if isinstance(config, SegmentConfig):
        return _look_at_scenes(config)
    return _look_at_images(config)


def _look_at_images(config: DistillConfig | FinetuneConfig) -> tuple[Images, Diagnosis]:
    from limbeck.data.scan import scan
    from limbeck.data.source import Chain
    from limbeck.recipes.run.images import check_holdout, check_labelled, open_images

    images = open_images(config.data)
    if isinstance(config, FinetuneConfig):
        check_labelled(images, config.data)
        check_holdout(images)
    everything = Chain([images.whole, images.holdout]) if config.data.eval_root else images.whole
    found = scan(everything, config.data, progress=_show_progress())
    problems, warnings = judge_images(found, images, config)
    return images, Diagnosis(found, None, problems, warnings)


def _look_at_scenes(config: SegmentConfig) -> tuple[Images, Diagnosis]:
    from limbeck.data.scenes.describe import describe
    from limbeck.data.scenes.scene import Scenes
    from limbeck.recipes.run.images import check_holdout
    from limbeck.recipes.run.scenes import open_scene_images

    # All that is bad is to be listed, not the first of it.
    images = open_scene_images(replace(config.data, broken="skip"))
    check_holdout(images)
    assert isinstance(images.train, Scenes) and isinstance(images.holdout, Scenes)
    found, held_out = (
        describe(scenes, progress=_show_progress()) for scenes in (images.train, images.holdout)
    )
    problems, warnings = judge_scenes(found, held_out, images, config)
    return images, Diagnosis(found, None, problems, warnings, held_out=held_out)


def _look_at_objects(config: DetectConfig) -> tuple[Images, Diagnosis]:
    from limbeck.data.scenes.objects.describe import describe_objects
    from limbeck.data.scenes.objects.source import ObjectSource
    from limbeck.recipes.run.images import check_holdout
    from limbeck.recipes.run.objects import draw_examples, open_object_images

    images = open_object_images(replace(config.data, broken="skip"))
    check_holdout(images)
    assert isinstance(images.train, ObjectSource) and isinstance(images.holdout, ObjectSource)
    found, held_out = (
        describe_objects(source, progress=_show_progress())
        for source in (images.train, images.holdout)
    )
    problems, warnings = judge_scenes(found, held_out, images, config)
    if isinstance(config, DoctorDetectConfig) and config.examples is not None:
        draw_examples(images.train, config.examples)
        warnings.append(f"Look at the boxes in {config.examples}: are they where they should be?")
    return images, Diagnosis(found, None, problems, warnings, held_out=held_out)


def _forecasts(config: Config, images: Images, ranks: Ranks) -> Iterator[Forecast]:
    """Of a step of the run, or of every stage of a chain."""
    from limbeck.recipes.train.detection import plan_detection
    from limbeck.recipes.train.segmentation import plan_segmentation
    from limbeck.recipes.train.tuning import plan_tuning

    if isinstance(config, DetectConfig):
        yield try_step(plan_detection(config, images, ranks), ranks)
    elif isinstance(config, SegmentConfig):
        yield try_step(plan_segmentation(config, images, ranks), ranks)
    elif isinstance(config, FinetuneConfig):
        yield try_step(plan_tuning(config, images, ranks), ranks)
    else:
        for nets, plan in rehearse(split_chain(config), images, ranks):
            forecast = try_step(plan, ranks)
            if nets.reader is not None:
                said = nets.reader.manifest.teacher["facts"]["origin"].get("source", "a teacher")
                said = f"stored answers of {said} to {len(nets.reader):,} images"
                forecast = replace(forecast, teacher=f"none in memory: {said}")
            yield forecast


def judge_scenes(
    found: SceneReport | ObjectReport, held_out: SceneReport | ObjectReport, images: Images,
    config: SegmentConfig | DetectConfig,
) -> tuple[list[str], list[str]]:  # fmt: skip
    """What stops a run on these annotated images, and what may surprise."""
    from limbeck.data.scenes.describe import SceneReport
    from limbeck.recipes.run.scenes import few_scenes

    what, kind = ("scene", "pixel") if isinstance(found, SceneReport) else ("image", "object")

    notes = [*images.train.notes, *images.holdout.notes]
    bad, left_out = {*found.bad, *held_out.bad}, {*found.left_out, *held_out.left_out}
    problems, warnings = _judge_number(len(bad), images.num_images, f"{what}s", images, config)
    warnings[:0] = dict.fromkeys(notes)
    if left_out:
        missing = "they have no mask" if kind == "pixel" else "of them or their boxes, see above"
        warnings.append(f"{len(left_out)} images are left out: {missing}.")
    if config.data.broken == "refuse" and (bad or left_out):
        problems.append(
            f"{len(bad | left_out)} {what}s can't be used, which --data.broken refuse refuses; "
            "repair or remove them, or pass --data.broken skip."
        )
    if absent := found.absent():
        warnings.append(f"No {kind} to train on is of {', '.join(absent)}: it is not learnt.")
    if isinstance(found, SceneReport) and (rare := found.rare()):
        warnings.append(f"Fewer than one pixel in 1,000 is of {', '.join(rare)}.")
    if not sum(_counts_of(held_out)):
        problems.append(f"No held-out {what} can be used, so nothing could be scored.")
    elif unscored := [name for name in held_out.absent() if name not in absent]:
        warnings.append(f"No held-out {kind} is of {', '.join(unscored)}: it is not scored.")
    warnings += filter(None, [few_scenes(len(images.holdout)).strip()])
    return problems, warnings


def _counts_of(report: SceneReport | ObjectReport) -> Iterable[int]:
    from limbeck.data.scenes.describe import SceneReport

    return (report.pixels if isinstance(report, SceneReport) else report.objects).values()


def judge_images(
    found: ScanReport, images: Images, config: DistillConfig | FinetuneConfig
) -> tuple[list[str], list[str]]:
    """What stops a run on these images, and what may surprise."""
    from limbeck.recipes.run.images import FEW_IMAGES, few_images

    notes = [*images.whole.notes, *(images.holdout.notes if config.data.eval_root else ())]
    problems, warnings = _judge_number(len(found.bad), found.num_images, "images", images, config)
    warnings[:0] = dict.fromkeys(notes)  # of one place for both, once
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


def _judge_number(
    num_bad: int, num_all: int, what: str, images: Images, config: Config
) -> tuple[list[str], list[str]]:
    """What stops a run, and may surprise, of how many are bad, and whether they fill a batch."""
    from limbeck.recipes.run.resolved import fitting_batch

    problems, warnings = [], []
    data: DataOptions = config.data
    batch = config.train.global_batch_size
    if num_bad > data.max_bad_ratio * num_all:
        problems.append(
            f"{num_bad} of {num_all} {what} can't be read, more than "
            f"--data.max-bad-ratio {data.max_bad_ratio:g} allows."
        )
    elif num_bad:
        warnings.append(f"{num_bad} {what} can't be read and will be skipped.")
    if len(images.train) < batch:
        fitted = fitting_batch(len(images.train), config.train)
        told = f"{len(images.train)} training {what} do not fill a batch of {batch}"
        if fitted > len(images.train):
            problems.append(f"{told}; add images, or lower --train.accumulate-steps.")
        else:
            warnings.append(
                f"{told}: a step will have {fitted} of them (--train.global-batch-size {fitted})."
            )
    return problems, warnings


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
    from limbeck.data.scan import ScanReport

    scan, forecast = diagnosis.scan, diagnosis.forecast
    told = [part for text in diagnosis.machine for part in text.split("; ")]
    lines = [f"{'' if place else 'machine':12}{part}" for place, part in enumerate(told)]
    is_scan = isinstance(scan, ScanReport)
    lines += _of_images(scan) if is_scan else _of_scenes(scan, diagnosis.held_out)
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
            f"memory      about {bytes_said(forecast.memory)} of "
            f"{bytes_said(forecast.memory_total)} {forecast.memory_of}",
            f"disk        about {bytes_said(forecast.disk)}; "
            f"{bytes_said(forecast.disk_free)} are free",
        ]
    lines += [f"WARNING     {text}" for text in diagnosis.warnings]
    lines += [f"PROBLEM     {text}" for text in diagnosis.problems]
    if not diagnosis.problems:
        lines.append(
            _ready(forecast)
            if forecast
            else f"The images are ready; add {diagnosis.missing} to try a step."
        )
    return "\n".join(_folded(line) for line in lines)


def _of_images(scan: ScanReport) -> Iterator[str]:
    yield (
        f"images      {scan.num_readable:,} readable of {scan.num_images:,}, "
        f"{bytes_said(scan.total_bytes)}"
    )
    yield (
        f"size        width {scan.width.min:.0f} to {scan.width.max:.0f} (median "
        f"{scan.width.median:.0f}), height {scan.height.min:.0f} to {scan.height.max:.0f} (median "
        f"{scan.height.median:.0f}) px"
    )
    yield f"formats     {_counts(scan.formats)}; modes {_counts(scan.modes)}"
    if scan.class_counts:
        yield f"classes     {len(scan.class_counts)}: {_counts(scan.class_counts)}"
    yield from (f"bad         {key}: {reason}" for key, reason in scan.bad[:NUM_LISTED])
    if len(scan.bad) > NUM_LISTED:
        yield f"bad         and {len(scan.bad) - NUM_LISTED} more"
    yield from (f"damaged     {key}" for key in scan.damaged[:NUM_LISTED])
    yield from (f"same bytes  {', '.join(group)}" for group in scan.duplicates[:NUM_LISTED])


def _of_scenes(
    scan: SceneReport | ObjectReport, held_out: SceneReport | ObjectReport | None
) -> Iterator[str]:
    from limbeck.data.scenes.describe import SceneReport, troubles

    assert held_out is not None
    yield from scan.lines()
    is_scenes = isinstance(held_out, SceneReport)
    yield (
        f"held out    {held_out.num_scenes:,} scenes"
        if is_scenes  # type: ignore[union-attr]
        else f"held out    {held_out.num_images:,} images"  # type: ignore[union-attr]
    )
    found = [*scan.left_out, *held_out.left_out, *scan.bad, *held_out.bad]
    yield from troubles(dict.fromkeys(found))


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


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
