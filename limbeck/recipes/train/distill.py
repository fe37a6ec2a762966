"""``limbeck distill``: from unlabelled images and a teacher to a small encoder.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.config import to_plain
from limbeck.recipes.run import checks
from limbeck.recipes.run.options import DistillConfig
from limbeck.recipes.run.probes import Probe
from limbeck.recipes.train.chain import (
    check_chain,
    check_first_teacher,
    distill_chain,
    finished_stages,
)

if TYPE_CHECKING:
    from torch import nn

    from limbeck.data.skipped import SkippedLog
    from limbeck.data.target_store.located import LocatedTargets
    from limbeck.engine.distributed import Ranks
    from limbeck.recipes.run.images import Images
    from limbeck.recipes.run.networks import Networks
    from limbeck.records import Batch

log = logging.getLogger("limbeck")


def check(config: DistillConfig) -> None:
    """All that can be wrong without opening an image or a weights file; raises UserError."""
    checks.check_pretraining(config)
    if config.chain:
        check_chain(config)
        check_first_teacher(config)
    checks.check_has_teacher(config)


def distill(config: DistillConfig) -> Path:
    """Run the distillation, or continue it; returns the run's folder with the finished student.

    Raises UserError for bad input, RunError where a run under way can't go on, and Interrupted
    when asked to stop (after saving).
    """
    check(config)
    from limbeck.data.workers import lost_workers_explained
    from limbeck.engine.distributed import ranks_session
    from limbeck.recipes.run.images import open_images
    from limbeck.recipes.run.precision import settle
    from limbeck.recipes.run.resolved import fit_batch
    from limbeck.recipes.targets.reading import open_networks

    with ranks_session(config.train.device, to_plain(config)) as ranks, lost_workers_explained():
        images = open_images(config.data)
        train = fit_batch(config.train, len(images.train))
        chain = "".join(config.chain.split())  # spaces mean nothing
        config = settle(replace(config, chain=chain, train=train), ranks)
        if config.chain:
            return distill_chain(config, images, ranks, _distill)
        return _distill(config, open_networks(config, ranks.device), images, ranks)


def _distill(config: DistillConfig, nets: Networks, images: Images, ranks: Ranks) -> Path:
    from limbeck.data.skipped import SkippedLog
    from limbeck.engine.checkpoint import open_run
    from limbeck.engine.distributed import freeze_untrained, on_main_rank
    from limbeck.engine.log import Log
    from limbeck.engine.loop import fit
    from limbeck.methods.distiller import Distiller
    from limbeck.models.build import describe_positions, parts_of, reinit_tail, remember
    from limbeck.models.finished import STUDENT_FILES, save_student
    from limbeck.recipes.run import lineage
    from limbeck.recipes.run.networks import (
        check_labels,
        check_pairs,
        identify_pretraining,
        layer_of,
    )
    from limbeck.recipes.run.precision import resolved_plain
    from limbeck.recipes.run.probes import build_probe
    from limbeck.recipes.run.resolved import Resolved
    from limbeck.recipes.targets.reading import locate

    student, facts = nets.student, nets.student.facts
    identity = identify_pretraining(config, nets, images, ranks)
    resolved = Resolved(**identity[0]["resolved"])
    # What does not fit together is told before the folder belongs to this run.
    distiller = Distiller(student, nets.method, nets.teacher)
    check_labels(nets, images.train.classes)
    check_pairs(nets.method, config.train, ranks.world_size)
    stored = nets.reader and locate(nets.reader, config, nets, images)
    run = open_run(config.out, *identity, overwrite=config.overwrite, makes=STUDENT_FILES)
    if run.is_finished:
        log.info("%s is finished already; nothing to do.", run.dir)
        return run.dir
    skipped = SkippedLog(run.dir / "skipped.jsonl", images.num_images, config.data.max_bad_ratio)
    batches = partial(train_stream, config, images, nets, ranks, skipped, stored=stored)
    distiller = distiller.to(ranks.device)
    untrained = [
        name.removeprefix("student.")
        for name in freeze_untrained(distiller, next(batches(0, 1)), parts_of(student))
        if name.startswith("student.")  # not the method's, which vanishes
    ]
    # The tail is never trained, so what becomes of it can be decided, and probed, from the start.
    tail = reinit_tail(student, untrained, config.untrained_tail, config.seed)
    # What can't be frozen, rows of a matrix, is decayed on the way: the student is shown without.
    restore = remember(student, untrained)
    with Log(run, config.train, ranks, stage="distill", total_steps=resolved.total_steps) as report:
        report.note(resolved.sentence())
        if untrained:
            report.note(
                f"{len(untrained)} tensors (or parts) of the student ({tail['num_values']:,} "
                f"values) get no gradient; untrained_tail is {config.untrained_tail}."
            )
        result = fit(
            distiller,
            lambda start: batches(start, resolved.total_steps),
            total_steps=resolved.total_steps,
            steps_per_epoch=resolved.steps_per_epoch,
            optim=config.optim,
            train=config.train,
            run=run,
            ranks=ranks,
            log=report,
            layer_id=partial(layer_of, student),
            num_layers=facts.depth,
            seed=config.seed,
            after_step=distiller.after_step,
            health=nets.method.health,
            probes=_after(
                restore,
                build_probe(
                    config.probes,
                    images,
                    student,
                    nets.live_teacher,
                    config.data,
                    ranks.device,
                    skipped,
                ),
            ),
        )
        restore()

        def finish() -> None:
            record = lineage.record(
                verb="distill",
                config=resolved_plain(config),
                teacher=nets.teacher and nets.teacher.facts,
                data=images.lineage,
                extra={
                    "untrained": tail,
                    "positions": describe_positions(student),
                    "steps": resolved.total_steps,
                    "scores": result.probes,
                    **({"health": result.health} if result.health else {}),
                    **_class_names(nets),
                },
            )
            save_student(
                student,
                run.dir,
                record,
                crop_ratio=config.probes.crop_ratio,
                kept=nets.method.keepsakes(),
            )
            run.finish(*(f"{name}.safetensors" for name in nets.method.keepsakes()))
            report.note(skipped.summary())

        # The other ranks wait: in a chain they load this student next.
        on_main_rank(finish)
    return run.dir


def _class_names(nets: Networks) -> dict[str, Any]:
    """The names of a trained classifier's classes, where the teacher has them."""
    if not nets.method_options.trains_classifier or nets.teacher is None:
        return {}
    names = nets.teacher.facts.origin.get("classes")
    return {} if names is None else {"classes": names}


def _after(restore: Callable[[], None], probe: Probe | None) -> Probe | None:
    """The probe of the student as it will be saved."""
    if probe is None:
        return None

    def restored(module: nn.Module, step: int) -> dict[str, float]:
        restore()
        return probe(module, step)

    return restored


def train_stream(
    config: DistillConfig,
    images: Images,
    nets: Networks,
    ranks: Ranks,
    skipped: SkippedLog,
    start_step: int,
    total_steps: int,
    stored: LocatedTargets | None = None,
) -> Iterator[Batch]:
    """This rank's micro-batches for the steps from ``start_step`` on."""
    from limbeck.recipes.run.images import stream
    from limbeck.recipes.targets.reading import stored_views

    views, *other_views = nets.method_options.views(config.crop)
    return stream(
        images,
        views if stored is None else stored_views(config, nets),
        nets.student.facts,
        data=config.data,
        train=config.train,
        seed=config.seed,
        ranks=ranks,
        skipped=skipped,
        start_step=start_step,
        total_steps=total_steps,
        other_views=other_views,
        local_views=nets.method_options.local_views(config.crop),
        targets=stored,
    )


def report(run_dir: Path) -> str:
    """What to do with a finished run, for the command line."""
    student = shlex.quote(str(run_dir))
    stages = [f"Stage {folder.name} is in {folder}.\n" for folder in finished_stages(run_dir)]
    return "".join(stages) + (
        f"The student is in {run_dir} (student.safetensors, student.json).\n"
        f"Fine-tune it:  limbeck finetune --student {student} --data LABELLED_IMAGES\n"
        f"Did it help?   limbeck evaluate --student {student} --data LABELLED_IMAGES\n"
        f'In Python:     encoder = limbeck.load("{run_dir}")'
    )
