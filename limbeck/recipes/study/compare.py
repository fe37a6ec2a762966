"""``limbeck compare``: which method is best on these images?

Each arm pre-trains the same student on the same images for as many steps; all answer the same
probes and are fine-tuned alike, over several seeds. Every run is an ordinary one in a folder of its
own, so a comparison that was stopped goes on, and arms and seeds can be added to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from limbeck.config import to_plain
from limbeck.documents import fit
from limbeck.errors import UserError
from limbeck.models.budgets import is_budget
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.run import checks
from limbeck.recipes.study.arms import (
    Entry,
    arm_config,
    read_arms,
    run_dir,
    student_of,
    table_needs_teacher,
    tuning_config,
)
from limbeck.recipes.study.comparison import Comparison, finetuned, report
from limbeck.recipes.study.engine import Arm, Engine, Run, remembered
from limbeck.recipes.study.options import SCRATCH, UNTRAINED, CompareConfig, TuningOptions
from limbeck.recipes.study.results import Result
from limbeck.recipes.study.runs import (
    needs_teacher,
    open_existing,
    own_num_heads,
    rehearsed,
    start_run,
)
from limbeck.recipes.train import distill as distillation
from limbeck.recipes.train import finetune as finetuning

if TYPE_CHECKING:
    import torch

    from limbeck.recipes.run.images import Images

__all__ = ["CompareConfig", "TuningOptions", "check", "compare", "report"]

COSTS = ("seconds", "memory_mib", "images_per_second")
PROBES_FILE = "probes.json"


class _Probed(TypedDict):
    scores: dict[str, float]


def check(config: CompareConfig) -> list[Entry]:
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
        student = "" if is_budget(config.student.name) else config.student.name
        finetuning.check(replace(tuning, student=student), needs_student=bool(student))
    needs = [table_needs_teacher(arm) for arm in arms]
    for arm, has_teacher in zip(arms, needs, strict=True):
        if has_teacher is not None and arm.method is not None:
            distillation.check(arm_config(config, arm, 0, has_teacher))
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
    from limbeck.recipes.run.budget import choose_student
    from limbeck.recipes.run.images import check_holdout, open_images
    from limbeck.recipes.run.precision import settle, settled_plain
    from limbeck.recipes.train.chain import rehearse

    with ranks_session(config.train.device) as ranks, lost_workers_explained():
        images = open_images(config.data)
        check_holdout(images)
        _check_labels(config, arms, images)
        config = choose_student(_with_batches_of(config, images), ranks, partial(_first, arms))
        config = settle(config, ranks)
        equal = _what_is_equal(config, images, arms)
        # Arms, seeds and parts may be added: each run in the folder knows its own.
        shared = settled_plain(config)
        for name in ("arms", "seeds", "label_fractions"):
            del shared[name]
        open_run(
            config.out,
            {"verb": "compare", **shared},
            {"data": images.fingerprint},
            overwrite=config.overwrite,
        )
        engine = Engine(catches=(Exception,))
        found = Comparison(config.out, arms, equal, engine.results, engine.failures)
        found.label_fractions = config.label_fractions
        configs = {arm.name: _configs(config, arm) for arm in arms if arm.method}
        for name, seeds in configs.items():
            existing = []
            with engine.attempt(name, "can't run"):  # without names: one teacher at a time
                existing = rehearsed(next(rehearse(seeds[:1], images, ranks))[1], seeds, ranks)
            open_existing(existing)
        if configs and len(found.failures) == len(configs):
            name, reason = next(iter(found.failures.items()))
            raise UserError(f"No arm can run; {name}: {reason}")
        chains = _Chains(config, arms, images, ranks.device)
        engine.finish_all(
            [Arm(arm.name, partial(chains.runs, arm, configs.get(arm.name))) for arm in arms],
            config.seeds,
            after=found.write,
        )
    return found


class _Chains:
    """The runs of the arms, and the probes of what they give."""

    def __init__(
        self, config: CompareConfig, arms: list[Entry], images: Images, device: torch.device
    ) -> None:
        from limbeck.data.skipped import SkippedLog
        from limbeck.models.heads import with_classifier
        from limbeck.models.origins.load import load_encoder
        from limbeck.recipes.look.prober import Prober
        from limbeck.recipes.run.networks import start_student

        self.config, self.images, self.device = config, images, device
        skipped = SkippedLog(None, images.num_images, config.data.max_bad_ratio)
        probing = EvaluateConfig(data=config.data, embed=config.embed, num_labels=(5,))
        self.prober = Prober(probing, images, device, skipped)
        if not images.is_labelled:
            assert config.teacher.source is not None
            teacher = load_encoder(config.teacher.source)
            self.prober.target = self.prober.embed(teacher, images.holdout)
        self.tunes = config.fine_tune and images.is_labelled
        self.num_heads: dict[StudentOptions, int | None] = {}
        for student in dict.fromkeys(student_of(config, arm) for arm in arms):
            start = start_student(student, 0.0, 0)
            self.num_heads[student] = own_num_heads(start)
            if self.tunes:
                # A student that can't be fine-tuned so is told before any arm has trained.
                num_classes = len(images.train.classes)
                with_classifier(start, num_classes, config.tune.global_pool, 0)

    def runs(
        self, arm: Entry, pretraining: Sequence[distillation.DistillConfig] | None, seed: int
    ) -> list[Run]:
        """The start or the pre-training, which is probed; then fine-tunings of what it gave."""
        config = self.config
        folder = run_dir(config.out, arm, seed)
        if pretraining is None:
            first = start_run(student_of(config, arm), seed, folder)
        else:
            work = partial(distillation.distill, pretraining[seed])
            first = Run(work, folder, {name: name for name in COSTS}, device=self.device)
        if arm.name != SCRATCH:
            first = replace(first, measure=partial(self._probe, folder))
        runs = [first]
        if self.tunes and arm.name != UNTRAINED:
            runs += [self._tuning(arm, folder, seed, part) for part in config.label_fractions]
        return runs

    def _tuning(self, arm: Entry, student: Path, seed: int, fraction: float) -> Run:
        from limbeck.recipes.run.lineage import scores_of

        own = tuning_config(self.config, arm, seed, fraction)
        num_heads = self.num_heads[student_of(self.config, arm)]
        own = replace(own, student=str(student), num_heads=num_heads)
        name = finetuned(fraction)

        def scores() -> Result:
            return Result({f"{name}_{key}": value for key, value in scores_of(own.out).items()})

        costs = {each: f"{name}_{each}" for each in COSTS}
        return Run(partial(finetuning.finetune, own), own.out, costs, scores, self.device)

    def _probe(self, folder: Path) -> Result:
        """The scores of a frozen student, from its folder where the same were measured before."""
        from limbeck.models.origins.load import load_encoder

        encoder = load_encoder(str(folder))
        asked = {
            "weights": encoder.facts.origin.get("weight_hash"),
            "architecture": encoder.facts.architecture,
            "data": self.images.fingerprint,
            "embed": to_plain(self.config.embed),
        }

        def probe() -> dict[str, Any]:
            scores = self.prober.scores(encoder)
            return {"scores": {name: each.mean for name, each in scores.items()}}

        file = folder / PROBES_FILE
        found: _Probed = fit(remembered(file, asked, probe), _Probed, str(file))
        return Result(found["scores"])


def _check_labels(config: CompareConfig, arms: list[Entry], images: Images) -> None:
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


def _what_is_equal(config: CompareConfig, images: Images, arms: list[Entry]) -> list[str]:
    """What all arms have in common, and what sets some of them apart, in sentences."""
    from limbeck.data.open import keep_labels
    from limbeck.recipes.run.images import few_images
    from limbeck.recipes.run.resolved import fitting_batch, resolve

    size = config.student.img_size or 0
    before = resolve(len(images.train), size, {}, config.optim, config.train)
    seeds = "seed 0" if config.seeds == 1 else f"seeds 0 to {config.seeds - 1}"
    sentences = [
        f"Equal for all: the student ({config.student.text}, at its start the same for a seed), "
        f"{before.num_images:,} training images, {len(images.holdout):,} test images, "
        f"{before.total_steps:,} steps of {config.train.global_batch_size} images of pre-training, "
        f"the crops (scale {config.crop.scale[0]:g} to {config.crop.scale[1]:g}), the optimiser, "
        f"{seeds}. Not equal: time and memory, which are in the table."
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


def _first(arms: list[Entry], config: CompareConfig) -> list[distillation.DistillConfig]:
    """The first pre-training of each arm."""
    return [_configs(replace(config, seeds=1), arm)[0] for arm in arms if arm.method]


def _configs(config: CompareConfig, arm: Entry) -> list[distillation.DistillConfig]:
    from limbeck.recipes.run.precision import filled

    assert arm.method is not None
    has_teacher = needs_teacher(arm.method, distillation.DistillConfig())
    configs = (arm_config(config, arm, seed, has_teacher) for seed in range(config.seeds))
    return [filled(each, config.train.precision) for each in configs]  # of an arm's own "auto"
