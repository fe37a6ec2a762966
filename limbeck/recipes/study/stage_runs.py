"""The runs of a two-stage distillation: rehearsed, run or continued, and measured."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.data.skipped import SkippedLog
from limbeck.engine.checkpoint import is_finished_run
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.models.encoder import Encoder
from limbeck.models.finished import is_finished_student, read_record
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.run.images import Images
from limbeck.recipes.run.networks import start_student
from limbeck.recipes.run.precision import filled
from limbeck.recipes.run.resolved import fitting_batch, resolve
from limbeck.recipes.study.engine import Arm, Engine, Run
from limbeck.recipes.study.options import StagesConfig
from limbeck.recipes.study.results import Result
from limbeck.recipes.study.runs import in_section, own_num_heads, rehearsed, start_run
from limbeck.recipes.study.stage_two.contract import Bench, StageTwo
from limbeck.recipes.study.stages import Way, folder_of, sees_test_images, stage_one_config
from limbeck.recipes.train.chain import rebuilt, rehearse
from limbeck.recipes.train.distill import distill

if TYPE_CHECKING:
    from limbeck.recipes.study.runs import Existing

log = logging.getLogger("limbeck")

FOUND_FILE = "evaluation.json"
TEACHER_FILE = "teacher.json"
NOT_YET = "not trained yet"
TUNING = {"seconds": "tuning_seconds"}


class StageRuns:
    """The runs of the ways and of the teacher; rehearsed, and measured where they are finished.

    ``images`` are labelled; ``pool`` are those of stage one, if there is one.
    """

    def __init__(
        self, task: StageTwo, config: StagesConfig, arms: list[Way], images: Images, ranks: Ranks
    ) -> None:
        self.task, self.config, self.arms = task, config, arms
        self.images, self.ranks = images, ranks
        self.pool: Images | None = None
        self.start = start_student(config.student, 0.0, 0)
        self.num_heads = own_num_heads(self.start)
        self.classes = list(images.train.classes)
        self.task_teacher = config.task_teacher
        self.tunes_teacher = False
        skipped = SkippedLog(None, images.num_images, config.data.max_bad_ratio)
        self.bench = Bench(config, images, ranks.device, skipped)

    def rehearse(self) -> list[Existing]:
        """Build every run once, and show it two images: folders, leaves to overwrite, identities.

        Networks that are still to be trained have the shapes that they will have, and fresh
        weights. Raises UserError where anything does not fit.
        """
        config, images, ranks = self.config, self.images, self.ranks
        runs: list[Existing] = []
        of_start = of_student = self.start.facts.architecture
        if self.pool is not None:
            log.info("Stage one is built once, to see that it fits.")
            stages = [stage_one_config(config, seed) for seed in range(config.seeds)]
            plan = next(rehearse(stages[:1], self.pool, ranks))[1]
            runs += rehearsed(plan, stages, ranks)
            of_student = plan.student.facts.architecture
            del plan  # one teacher at a time
        load_teacher: Callable[..., Encoder] = load_encoder
        if self._must_tune_teacher():
            log.info("The teacher's fine-tuning is built once, likewise.")
            tuning = self.task.teacher(config)
            batch = fitting_batch(len(images.train), tuning.train)  # as finetune itself will
            tuning = replace(tuning, train=replace(tuning.train, global_batch_size=batch))
            try:
                with in_section("tune_teacher", type(config.tune_teacher)):
                    plan = self.task.plan(tuning, images, ranks)
                    runs += rehearsed(plan, [tuning], ranks)
            except UserError as error:
                raise UserError(
                    f"The teacher can't be fine-tuned here: {error} Or name a "
                    f"{self.task.network} of these classes with --task-teacher."
                ) from error
            if not is_finished_run(tuning.out, *runs[-1][2]):
                load_teacher = rebuilt(plan.student.facts.architecture, classes=self.classes)
            del plan
        for arm in self.arms:
            log.info("Stage two of the arm %s is built once, likewise.", arm.name)
            load_student = rebuilt(of_student if arm.is_generic else of_start)
            tunings = [self._tuning(arm, seed) for seed in range(config.seeds)]
            with in_section("specific", type(config.specific)):
                plan = self.task.plan(tunings[0], images, ranks, load_student, load_teacher)
                of_arm = rehearsed(plan, tunings, ranks)
            for own, (_, _, (_, fingerprint)) in zip(tunings, of_arm, strict=True):
                fingerprint["student"] = NOT_YET
                if is_finished_student(own.student):
                    fingerprint["student"] = read_record(own.student)[1]["weight_hash"]
            runs += of_arm
        return runs

    def _must_tune_teacher(self) -> bool:
        """Find the teacher of stage two, and whether it is still to be made of stage one's."""
        if self.task_teacher is not None or not any(arm.is_taught for arm in self.arms):
            return False
        config = self.config
        source = config.teacher.source
        assert source is not None
        heads = {} if config.teacher.num_heads is None else {"num_heads": config.teacher.num_heads}
        facts = load_encoder(source, **heads).facts
        knows = facts.num_classes and facts.origin.get("classes") == self.classes
        if knows and facts.has_maps == self.task.has_maps:
            log.info("The teacher %s is a %s of these classes already.", source, self.task.network)
            default = filled(type(config.tune_teacher)(), config.tune_teacher.train.precision)
            if config.tune_teacher != default:
                raise UserError(
                    f"Options of --tune-teacher have no effect: {source} is a "
                    f"{self.task.network} of these classes already; leave them out."
                )
            self.task_teacher = source
            return False
        self.task_teacher = str(self.task.teacher(config).out)
        self.tunes_teacher = True
        return True

    def _tuning(self, arm: Way, seed: int) -> Any:
        return self.task.arm(self.config, arm, seed, self.task_teacher, self.num_heads)

    def teach(self) -> Result | None:
        """Fine-tune the teacher if need be; what it scores, None where no arm has one."""
        if self.task_teacher is None:
            return None
        work, out, costs = (lambda: None), self.config.out, {}
        if self.tunes_teacher:
            log.info("The teacher is fine-tuned.")
            own = self.task.teacher(self.config)
            work, out, costs = partial(self.task.train, own), own.out, TUNING
        measure = partial(self._measure, self.task_teacher, self.config.out / TEACHER_FILE)
        engine = Engine()
        engine.finish([(Arm("teacher", lambda seed: [Run(work, out, costs, measure)]), 0)])
        return engine.results["teacher"][0]

    def runs(self, arm: Way, seed: int) -> list[Run]:
        """Stage one or the start, and the fine-tuning of what it gives."""
        if arm.is_generic:
            stage = stage_one_config(self.config, seed)
            first = Run(partial(distill, stage), stage.out, {"seconds": "stage_one_seconds"})
        else:
            first = start_run(self.config.student, seed, folder_of(self.config.out, seed, "start"))
        own = self._tuning(arm, seed)
        measure = partial(self._measure, str(own.out), own.out / FOUND_FILE)
        return [first, Run(partial(self.task.train, own), own.out, TUNING, measure)]

    def _measure(self, source: str, file: Path) -> Result:
        """Scores and costs of a network, from a file where the same were measured before."""
        return self.task.measure(self.bench, load_encoder(source), source, file)

    def sentences(self) -> list[str]:
        """What all arms have in common, for people."""
        config, images = self.config, self.images
        size = self.start.facts.img_size[0]
        after = resolve(len(images.train), size, {}, config.specific.optim, config.specific.train)
        seeds = "seed 0" if config.seeds == 1 else f"seeds 0 to {config.seeds - 1}"
        told = [
            f"Equal for all arms: the student ({config.student.text}), {after.num_images:,} "
            f"labelled images, {len(images.holdout):,} test images, {after.total_steps:,} steps of "
            f"{config.specific.train.global_batch_size} images of fine-tuning, {seeds}; from "
            "scratch it is without layer decay."
        ]
        if self.pool is not None:
            before = resolve(len(self.pool.train), size, {}, config.optim, config.train)
            told.append(
                f"Stage one, which the others do not have: {config.method}, "
                f"{before.total_steps:,} steps of {config.train.global_batch_size} of "
                f"{before.num_images:,} images, without labels."
            )
        told += [f"Note: {note}" for note in self.task.notes(self.bench, self.start)]
        if sees_test_images(config):
            told.append(
                f"Note: {config.unlabelled} holds test images too, so stage one has seen them, "
                "without their labels."
            )
            log.warning(told[-1])
        return told
