"""One way to train: a plan says what is special about a kind of training, ``train`` does the rest.

A training verb is its options, what is checked, a plan, and what is reported
(``examples/own_training.py``).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from limbeck.config import to_plain
from limbeck.data.skipped import SkippedLog
from limbeck.data.workers import lost_workers_explained
from limbeck.engine.checkpoint import open_run
from limbeck.engine.distributed import Ranks, freeze_untrained, on_main_rank, ranks_session
from limbeck.engine.log import Log
from limbeck.engine.loop import fit
from limbeck.methods.distiller import Distiller
from limbeck.models.build import parts_of, reinit_tail, remember
from limbeck.models.finished import STUDENT_FILES, save_student
from limbeck.recipes.run import lineage
from limbeck.recipes.run.budget import choose_student
from limbeck.recipes.run.images import Images, open_images
from limbeck.recipes.run.networks import OWNERS, layer_of
from limbeck.recipes.run.options import TrainingOptions
from limbeck.recipes.run.plan import Plan
from limbeck.recipes.run.precision import settle, settled_plain
from limbeck.recipes.run.probes import Probe
from limbeck.recipes.run.resolved import Resolved, fit_batch
from limbeck.recipes.run.trial import fewest_parts
from limbeck.records import Batch

log = logging.getLogger("limbeck")

Config = TypeVar("Config", bound=TrainingOptions)


@contextmanager
def session(
    config: Config, opened: Callable[[Any], Images] = open_images
) -> Iterator[tuple[Config, Images, Ranks]]:
    """The processes and images of a training, and its config with all that follows from them."""
    with ranks_session(config.train.device, to_plain(config)) as ranks, lost_workers_explained():
        images = opened(config.data)
        train = fit_batch(config.train, len(images.train))
        config = choose_student(replace(config, train=train), ranks, lambda own: [own])
        yield settle(config, ranks), images, ranks


def train(plan: Plan, ranks: Ranks) -> Path:
    """Train to the end, from a checkpoint if there is one; returns the run's folder.

    Raises UserError where the folder holds another run, RunError where a run under way can't go on,
    and Interrupted when asked to stop (after saving).
    """
    config, images, student = plan.config, plan.images, plan.student
    identity = plan.identity(ranks)
    resolved = Resolved(**identity[0]["resolved"])
    run = open_run(config.out, *identity, overwrite=config.overwrite, makes=STUDENT_FILES)
    if run.is_finished:
        run.release()
        log.info("%s is finished already; nothing to do.", run.dir)
        return run.dir
    if plan.warning:
        log.warning("%s", plan.warning)
    skipped = SkippedLog(run.dir / "skipped.jsonl", images.num_images, config.data.max_bad_ratio)
    if config.train.fit_memory:
        parts = fewest_parts(plan, ranks)
        config = replace(config, train=replace(config.train, accumulate_steps=parts))
    module = plan.module.to(ranks.device)
    tail = _Tail(plan, partial(plan.stream, config, skipped))
    steps = resolved.total_steps
    line = lineage.line_of(student.facts, plan.teacher)
    with Log(run, config.train, ranks, stage=plan.verb, total_steps=steps) as report:
        report.note(resolved.sentence())
        for warning in filter(None, (each.warning for each in line)):
            report.note(warning)
        if config.train.fit_memory:
            report.note(f"A step in {config.train.accumulate_steps} micro-batches fits the memory.")
        if tail.note:
            report.note(tail.note)
        probe = plan.score(skipped)
        result = fit(
            module,
            lambda start: plan.stream(config, skipped, start, steps),
            total_steps=steps,
            steps_per_epoch=resolved.steps_per_epoch,
            optim=config.optim,
            train=config.train,
            run=run,
            ranks=ranks,
            log=report,
            layer_id=partial(layer_of, student),
            num_layers=student.facts.depth,
            seed=config.seed,
            after_step=_after_step(plan),
            health=plan.health,
            measure=plan.measure,
            probes=probe and tail.before(probe),
        )
        tail.restore()

        def finish() -> None:
            kept = plan.keepsakes()
            record = lineage.record(
                verb=plan.verb,
                config=settled_plain(config),
                start=student.facts,
                teacher=plan.teacher,
                data=images.lineage,
                extra=tail.record
                | plan.about()
                | {"steps": result.step, "scores": result.probes}
                | ({"health": result.health} if result.health else {}),
            )
            save_student(student, run.dir, record, crop_ratio=plan.crop_ratio, kept=kept)
            run.finish(*(f"{name}.safetensors" for name in kept))
            report.note(skipped.summary())

        on_main_rank(finish)  # the other ranks wait: in a chain they load this student next
    return run.dir


def _after_step(plan: Plan) -> Callable[[int, int], None]:
    """What the plan and its method, whichever task that stands beside, do after each step."""
    module = plan.module
    own = module.after_step if isinstance(module, Distiller) else None
    callbacks = [each for each in (own, plan.after_step) if each is not None]

    def after_step(step: int, total_steps: int) -> None:
        for each in callbacks:
            each(step, total_steps)

    return after_step


class _Tail:
    """What of the student no loss depends on: frozen, and as the plan wants it from the start."""

    def __init__(self, plan: Plan, batches: Callable[[int, int], Iterator[Batch]]) -> None:
        self.record: dict[str, Any] = {}
        self.note = ""
        self.restore: Callable[[], None] = lambda: None
        if plan.untrained is None:
            return
        student = plan.student
        found = freeze_untrained(plan.module, next(batches(0, 1)), parts_of(student))
        split = [name.partition(".") for name in found]
        names = [name for owner, _, name in split if owner in OWNERS]  # the method's vanish
        # It is never trained, so what becomes of it can be decided, and probed, from the start.
        self.record["untrained"] = reinit_tail(student, names, plan.untrained, plan.config.seed)
        # What can't be frozen, rows of a matrix, is decayed on the way: it is shown without.
        self.restore = remember(student, names)
        if names:
            self.note = (
                f"{len(names)} tensors (or parts) of the student "
                f"({self.record['untrained']['num_values']:,} values) get no gradient; "
                f"untrained_tail is {plan.untrained}."
            )

    def before(self, probe: Probe) -> Probe:
        """The probe of the student as it will be saved."""

        def restored(module: nn.Module, step: int) -> dict[str, float]:
            self.restore()
            return probe(module, step)

        return restored


def rehearse(plan: Plan, ranks: Ranks) -> None:
    """Show what would train two images: what does not fit is told before anything has trained."""
    config, images = plan.config, plan.images
    small = replace(
        config,
        data=replace(config.data, num_workers=0),
        train=replace(config.train, global_batch_size=2, accumulate_steps=1),
    )
    module = plan.module.to(ranks.device)
    skipped = SkippedLog(None, images.num_images, config.data.max_bad_ratio)
    with torch.no_grad():
        module(next(plan.stream(small, skipped, 0, 1)))
