"""``limbeck compare``: which method is best on these images?

Each arm pre-trains the same student on the same images for as many steps; all answer the same
probes and are fine-tuned alike, over several seeds. Every run is an ordinary one in a folder of its
own, so a comparison that was stopped goes on, and arms and seeds can be added to it.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError, explain
from limbeck.models.options import TeacherOptions
from limbeck.recipes.run import checks
from limbeck.recipes.study.arms import Arm, arm_config, read_arms, table_needs_teacher
from limbeck.recipes.study.comparison import Comparison, Result, report, write
from limbeck.recipes.study.options import SCRATCH, CompareConfig, TuningOptions
from limbeck.recipes.study.trials import Trials, tuning_config
from limbeck.recipes.train import distill as distillation
from limbeck.recipes.train import finetune as finetuning
from limbeck.recipes.train.rehearsal import open_existing, try_distillation

if TYPE_CHECKING:
    from limbeck.engine.distributed import Ranks
    from limbeck.recipes.run.images import Images

log = logging.getLogger("limbeck")

__all__ = ["CompareConfig", "TuningOptions", "check", "compare", "report"]


def check(config: CompareConfig) -> list[Arm]:
    """All that can be wrong without torch; the arms. Raises UserError."""
    arms = read_arms(config.arms)
    checks.check_data(config.data)
    checks.check_one_process("compare is one process, and runs one arm after the other")
    if not config.fine_tune:
        if config.tune != TuningOptions():
            raise UserError("Options of --tune have no effect with --no-fine-tune.")
        if config.label_fractions != CompareConfig().label_fractions:
            raise UserError("label_fractions has no effect with --no-fine-tune; leave it out.")
        if SCRATCH in (arm.name for arm in arms):
            raise UserError("The arm 'scratch' is a fine-tuning; leave out it or --no-fine-tune.")
    if not config.label_fractions or len(set(config.label_fractions)) < len(config.label_fractions):
        raise UserError("label_fractions names each part once, and at least one.")
    if config.fine_tune:
        tuning = tuning_config(config, arms[0], 0, 1.0)
        finetuning.check(replace(tuning, student=config.student.name))
    needs = [table_needs_teacher(arm) for arm in arms]
    for arm, needs_teacher in zip(arms, needs, strict=True):
        if needs_teacher is not None and arm.method is not None:
            distillation.check(arm_config(config, arm, 0, needs_teacher))
    if not any(each in (True, None) for each in needs) and config.teacher != TeacherOptions():
        raise UserError("No arm has a teacher; leave --teacher out, or add an arm that has one.")
    return arms


def compare(config: CompareConfig) -> Comparison:
    """Run the comparison, or go on with it; raises UserError for bad input.

    An arm that fails is told in the table and does not end the others; Interrupted (Ctrl-C) does.
    """
    arms = check(config)
    from limbeck.data.workers import lost_workers_explained
    from limbeck.engine.checkpoint import open_run
    from limbeck.engine.distributed import ranks_session
    from limbeck.recipes.run.images import check_holdout, open_images
    from limbeck.recipes.run.precision import resolved_plain, settle

    with ranks_session(config.train.device) as ranks, lost_workers_explained():
        images = open_images(config.data)
        check_holdout(images)
        _check_labels(config, arms, images)
        config = settle(_with_batches_of(config, images), ranks)
        equal = _what_is_equal(config, images, arms)
        # Arms, seeds and parts may be added: each run in the folder knows its own.
        shared = resolved_plain(config)
        for name in ("arms", "seeds", "label_fractions"):
            del shared[name]
        open_run(
            config.out,
            {"verb": "compare", **shared},
            {"data": images.fingerprint},
            overwrite=config.overwrite,
        )
        found = Comparison(config.out, arms, equal, label_fractions=config.label_fractions)
        configs = {arm.name: _configs(config, arm) for arm in arms if arm.method}
        for arm in arms:
            if arm.method and (reason := _rehearse(configs[arm.name], images, ranks)):
                log.warning("Arm %s can't run: %s", arm.name, reason)
                found.failures[arm.name] = reason
        if len(found.failures) == len(configs):
            name, reason = next(iter(found.failures.items()))
            raise UserError(f"No arm can run; {name}: {reason}")
        trials = Trials(config, images, ranks.device)
        for seed in range(config.seeds):
            for arm in arms:
                if arm.name in found.failures:
                    continue
                log.info("Arm %s, seed %d of %d", arm.name, seed, config.seeds)
                result = found.results.setdefault(arm.name, {}).setdefault(seed, Result())
                own = configs[arm.name][seed] if arm.method else None
                if reason := _caught(partial(trials.run, arm, seed, own, result)):
                    log.warning("Arm %s has failed: %s", arm.name, reason)
                    found.failures[arm.name] = reason
                write(found)
    return found


def _check_labels(config: CompareConfig, arms: list[Arm], images: Images) -> None:
    if images.is_labelled:
        return
    if config.teacher.source is None:
        raise UserError(
            f"{config.data.root} has no labels, so arms can only be compared by how far their "
            "neighbourhoods are the teacher's; pass --teacher, or class sub-folders."
        )
    if SCRATCH in (arm.name for arm in arms):
        raise UserError("The arm 'scratch' needs labels, and the images have none; leave it out.")


def _with_batches_of(config: CompareConfig, images: Images) -> CompareConfig:
    """The comparison with batches that its images fill; each fine-tuning fits its part of them."""
    from limbeck.recipes.run.resolved import fit_batch

    train = fit_batch(config.train, len(images.train))
    if not (config.fine_tune and images.is_labelled):
        return replace(config, train=train)
    tune = fit_batch(config.tune.train, len(images.train), option="--tune.train")
    return replace(config, train=train, tune=replace(config.tune, train=tune))


def _what_is_equal(config: CompareConfig, images: Images, arms: list[Arm]) -> list[str]:
    """What all arms have in common, and what sets some of them apart, in sentences."""
    from limbeck.data.open import keep_labels
    from limbeck.recipes.run.images import few_images
    from limbeck.recipes.run.resolved import fitting_batch, resolve

    size = config.student.img_size or 0
    before = resolve(len(images.train), size, {}, config.optim, config.train)
    seeds = "seed 0" if config.seeds == 1 else f"seeds 0 to {config.seeds - 1}"
    sentences = [
        f"Equal for all: the student ({config.student.name}, at its start the same for a seed), "
        f"{before.num_images:,} training images, {len(images.holdout):,} test images, "
        f"{before.total_steps:,} steps of {config.train.global_batch_size} images of pre-training, "
        f"the crops (scale {config.crop.scale[0]:g} to {config.crop.scale[1]:g}), the optimiser, "
        f"{seeds}. Not equal: time and memory, which are in the table.",
    ]
    if config.fine_tune and images.is_labelled:
        tune, numbers = config.tune, []
        for fraction in config.label_fractions:
            train = keep_labels(images.train, fraction, 0) if fraction < 1 else images.train
            batch = fitting_batch(len(train), tune.train)
            fitted = replace(tune.train, global_batch_size=batch)
            try:
                after = resolve(len(train), size, {}, tune.optim, fitted)
            except UserError as error:
                why = str(error).replace("train.", "tune.train.")
                raise UserError(f"Tuning with {100 * fraction:g} % of the labels: {why}") from error
            part = f" with {100 * fraction:g} % of the labels" if fraction < 1 else ""
            numbers.append(f"{after.total_steps:,} steps of {batch} images{part}")
        sentences.append(f"Fine-tuned alike, scratch without layer decay: {', '.join(numbers)}.")
    if few := few_images(len(images.holdout)):
        sentences.append(f"Note:{few}")
    sentences += [
        f"{arm.name} differs in {', '.join(f'{k} = {v}' for k, v in arm.of_run.items())}."
        for arm in arms
        if arm.of_run
    ]
    return sentences


def _configs(config: CompareConfig, arm: Arm) -> list[distillation.DistillConfig]:
    from limbeck.recipes.run.networks import method_class
    from limbeck.recipes.run.precision import filled

    needs_teacher = table_needs_teacher(arm)
    if needs_teacher is None:
        assert arm.method is not None
        needs_teacher = bool(method_class(arm.method).Options.needs_teacher)
    configs = (arm_config(config, arm, seed, needs_teacher) for seed in range(config.seeds))
    return [filled(each, config.train.precision) for each in configs]  # of an arm's own "auto"


def _caught(work: Callable[[], None]) -> str | None:
    """Do the work; why it failed, in words, or None."""
    from limbeck.engine.loop import Interrupted

    try:
        work()
    except Interrupted:
        raise
    except UserError as error:
        return str(error)
    except Exception as error:  # an arm may be anybody's class, and memory may end
        log.debug("The arm's traceback:", exc_info=True)
        return explain(error)
    return None


def _rehearse(seeds: list[distillation.DistillConfig], images: Images, ranks: Ranks) -> str | None:
    """Build an arm once and show it two images; why it can't run, or None.

    Raises UserError where a folder holds another run, before any arm has trained.
    """
    identities: list[Any] = []

    def build() -> None:
        plan = try_distillation(seeds[0], images, ranks)
        identities.extend(replace(plan, config=each).identity(ranks) for each in seeds)

    if reason := _caught(build):
        return reason
    open_existing(
        (each.out, each.overwrite, identity)
        for each, identity in zip(seeds, identities, strict=True)
    )
    return None
