"""``limbeck finetune``: a student and labelled images, and a teacher if wanted, to a classifier.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.config import to_plain
from limbeck.data.options import DataOptions, MixOptions
from limbeck.errors import UserError
from limbeck.models.options import (
    choose_pool,
)
from limbeck.recipes.run import checks
from limbeck.recipes.run.options import FinetuneConfig

if TYPE_CHECKING:
    import torch

    from limbeck.data.skipped import SkippedLog
    from limbeck.data.source import Source
    from limbeck.engine.distributed import Ranks
    from limbeck.models.timm_encoder import TimmEncoder
    from limbeck.recipes.run.images import Images
    from limbeck.records import Batch
    from limbeck.tasks.classification import Classification

log = logging.getLogger("limbeck")


def with_labels(data: DataOptions, fraction: float, seed: int) -> DataOptions:
    """The data with a part of the labels, drawn anew for each seed."""
    return replace(data, label_fraction=fraction, label_seed=seed if fraction < 1 else 0)


def check(config: FinetuneConfig) -> None:
    """All that can be wrong without opening an image or a weights file; raises UserError."""
    checks.check_data(config.data)
    checks.check_train(config.train, config.optim)
    checks.check_mixing(config.mix, config.train)
    checks.check_optimizer(config.optim, FinetuneConfig().optim)
    checks.check_teacher(config.teacher, any_model=True)
    checks.check_task_method(config, config.teacher)
    if config.head is not None:
        choose_pool(config.head, config.global_pool)
    _check_head(config)
    checks.check_second_head(config.head, config.student, config.dist_head_init_std)
    if config.layer_scale and config.rel_pos is None:
        raise UserError("layer_scale has no effect without --rel-pos; leave it out.")
    if config.rel_pos is not None and config.head not in (None, "single"):
        raise UserError(f"rel_pos is for a single head, not {config.head}; leave one of them out.")
    if not config.student:
        raise UserError(
            "No student is named; pass --student RUN_FOLDER, or a timm name such as vit_tiny to "
            "train from scratch."
        )
    if checks.is_bare_name(config.student):
        checks.check_bare_name(config.student)
        if config.keep_blocks is not None:
            raise UserError(
                f"keep_blocks has no effect with {config.student}, which starts from scratch; "
                "leave it out, or name weights."
            )
    else:
        checks.check_source(config.student)
    if config.mix.mixup_alpha == config.mix.cutmix_alpha == 0:
        default = MixOptions()
        if (config.mix.mix_prob, config.mix.switch_prob) != (default.mix_prob, default.switch_prob):
            raise UserError("mix.mix_prob and mix.switch_prob have no effect without mixing.")


def _check_head(config: FinetuneConfig) -> None:
    """At most one way for the classifier to start."""
    if config.head_index is None and not config.keep_head:
        return
    name = "keep_head" if config.keep_head else "head_index"
    if config.head_index is not None:
        if config.keep_head:
            raise UserError("keep_head and head_index exclude each other; leave one of them out.")
        checks.check_path(str(config.head_index), "--head-index")
    if config.keep_blocks is not None:
        raise UserError(
            f"{name} has no effect with keep_blocks, after which the classifier starts afresh, "
            "too; leave one of them out."
        )
    for option in ("head_init_std", "dist_head_init_std"):
        if getattr(config, option) != getattr(FinetuneConfig(), option):
            raise UserError(f"{option} has no effect with {name}; leave one of them out.")
    if config.student and checks.is_bare_name(config.student):
        raise UserError(
            f"{name} has no effect with {config.student}, which starts from scratch; leave it out, "
            "or name weights."
        )


def finetune(config: FinetuneConfig) -> Path:
    """Run the fine-tuning, or continue it; returns the run's folder with the finished classifier.

    Raises UserError for bad input, RunError where a run under way can't go on, and Interrupted
    when asked to stop (after saving).
    """
    check(config)
    from limbeck.data.workers import lost_workers_explained
    from limbeck.engine.distributed import ranks_session
    from limbeck.recipes.run.images import check_holdout, open_images
    from limbeck.recipes.run.precision import settle
    from limbeck.recipes.run.resolved import fit_batch

    with ranks_session(config.train.device, to_plain(config)) as ranks, lost_workers_explained():
        images = open_images(config.data)
        if not images.is_labelled:
            root = config.data.eval_root if images.train.classes else config.data.root
            raise UserError(
                f"{root} has no labels; fine-tuning needs class sub-folders (data/cat/1.jpg) or a "
                "label column."
            )
        check_holdout(images)
        train = fit_batch(config.train, len(images.train))
        checks.check_mixing(config.mix, train)
        return _finetune(settle(replace(config, train=train), ranks), images, ranks)


def _finetune(config: FinetuneConfig, images: Images, ranks: Ranks) -> Path:
    from limbeck.data.skipped import SkippedLog
    from limbeck.engine.checkpoint import open_run
    from limbeck.engine.log import Log
    from limbeck.engine.loop import fit
    from limbeck.models.finished import STUDENT_FILES, save_student
    from limbeck.recipes.run import lineage
    from limbeck.recipes.run.networks import layer_of
    from limbeck.recipes.run.precision import resolved_plain
    from limbeck.recipes.run.resolved import Resolved
    from limbeck.recipes.train.finetune_networks import build_tuning, identify

    classes = list(images.train.classes)
    nets = build_tuning(config, classes, ranks.device)
    student, facts, task = nets.student, nets.student.facts, nets.task
    identity = identify(config, nets, images, ranks)
    resolved = Resolved(**identity[0]["resolved"])
    run = open_run(config.out, *identity, overwrite=config.overwrite, makes=STUDENT_FILES)
    if run.is_finished:
        log.info("%s is finished already; nothing to do.", run.dir)
        return run.dir
    skipped = SkippedLog(run.dir / "skipped.jsonl", images.num_images, config.data.max_bad_ratio)
    if facts.has_dist_head and not nets.taught:
        log.warning("No --teacher is named, so the labels teach the distillation head as well.")
    module = nets.module.to(ranks.device)
    with Log(
        run, config.train, ranks, stage="finetune", total_steps=resolved.total_steps
    ) as report:
        report.note(resolved.sentence())
        result = fit(
            module,
            partial(tuning_stream, config, images, student, ranks, skipped, resolved.total_steps),
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
            probes=partial(_score, config, images.holdout, task, ranks.device, skipped),
        )
        if ranks.is_main:
            record = lineage.record(
                verb="finetune",
                config=resolved_plain(config),
                teacher=nets.teacher,
                data=images.lineage,
                extra={
                    "classes": classes,
                    "student": facts.origin,
                    "steps": resolved.total_steps,
                    "scores": result.probes,
                },
            )
            save_student(student, run.dir, record, crop_ratio=config.evaluation.crop_ratio)
            run.finish()
            report.note(skipped.summary())
    return run.dir


def tuning_stream(
    config: FinetuneConfig,
    images: Images,
    student: TimmEncoder,
    ranks: Ranks,
    skipped: SkippedLog,
    total_steps: int,
    start_step: int,
) -> Iterator[Batch]:
    """This rank's mixed micro-batches for the steps from ``start_step`` on."""
    from limbeck.data.mixing import mix
    from limbeck.recipes.run.images import stream

    facts = student.facts
    batches = stream(
        images,
        config.views,
        facts,
        data=config.data,
        train=config.train,
        seed=config.seed,
        ranks=ranks,
        skipped=skipped,
        start_step=start_step,
        total_steps=total_steps,
    )
    for batch in batches:
        # The first view's seed stands for the micro-batch: mixing, too, survives a resume.
        yield mix(batch, config.mix, facts.num_classes, seed=int(batch.view_seeds[0]))


def _score(
    config: FinetuneConfig,
    holdout: Source,
    task: Classification,
    device: torch.device,
    skipped: SkippedLog,
    module: object,
    step: int,
) -> dict[str, float]:
    """top1 and top5 on the held-out images."""
    del module, step
    from limbeck.recipes.run.options import EmbedOptions
    from limbeck.recipes.run.probes import embed_source

    options = EmbedOptions(**asdict(config.evaluation))
    said = embed_source(task.encoder, holdout, options, config.data, device, skipped)
    assert said.logits is not None and said.labels is not None
    return task.score(said.logits, said.labels)


def report(run_dir: Path) -> str:
    """The scores of a finished run, for the command line."""
    from limbeck.models.finished import read_record
    from limbeck.recipes.run.images import few_images
    from limbeck.recipes.run.lineage import scores_of

    num_test = read_record(run_dir)[1]["data"]["num_holdout"]
    student = shlex.quote(str(run_dir))
    found = scores_of(run_dir).items()
    scores = ", ".join(f"{name} {100 * value:.1f} %" for name, value in found)
    return (
        f"Held-out images at the end: {scores}.{few_images(num_test)}\n"
        f"The classifier is in {run_dir} (student.safetensors, student.json).\n"
        f"Other images:  limbeck evaluate --student {student} --data LABELLED_IMAGES\n"
        f'In Python:     classifier = limbeck.load("{run_dir}")'
    )
