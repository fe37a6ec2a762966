"""The runs of a two-stage distillation: rehearsed, run or continued, and measured."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
import torch
from typing_extensions import TypedDict

from limbeck.data.skipped import SkippedLog
from limbeck.documents import fit
from limbeck.engine.checkpoint import is_finished_run
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.evaluation.predictions import top_scores
from limbeck.evaluation.robustness import Robustness
from limbeck.evaluation.scores import score_of
from limbeck.models.encoder import Encoder
from limbeck.models.finished import is_finished_student, read_record
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.look.claims import class_notes, columns_of
from limbeck.recipes.look.evaluate import Prober
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.look.robustness import corrupted_scores, notes_of
from limbeck.recipes.run.images import Images, few_images
from limbeck.recipes.run.networks import start_student
from limbeck.recipes.run.options import EmbedOptions
from limbeck.recipes.run.precision import filled
from limbeck.recipes.run.probes import centre_crops
from limbeck.recipes.run.resolved import fitting_batch, resolve
from limbeck.recipes.study.engine import Arm, Engine, Run, remembered
from limbeck.recipes.study.options import SpecificOptions, TuneTeacherOptions, TwoStageConfig
from limbeck.recipes.study.results import Result
from limbeck.recipes.study.runs import in_section, own_num_heads, rehearsed, start_run
from limbeck.recipes.study.stages import (
    Way,
    arm_config,
    folder_of,
    sees_test_images,
    stage_one_config,
    teacher_config,
)
from limbeck.recipes.train.chain import rebuilt, rehearse
from limbeck.recipes.train.distill import distill
from limbeck.recipes.train.finetune import finetune
from limbeck.recipes.train.tuning import plan_tuning

if TYPE_CHECKING:
    from limbeck.recipes.study.runs import Existing

log = logging.getLogger("limbeck")

FOUND_FILE = "evaluation.json"
TEACHER_FILE = "teacher.json"
NOT_YET = "not trained yet"
TUNING = {"seconds": "tuning_seconds"}


class _Known(TypedDict):
    scores: dict[str, Annotated[str, pydantic.Field(pattern="^[01]+$")]]
    cost: dict[str, float]


class StageRuns:
    """The runs of the ways and of the teacher; rehearsed, and measured where they are finished.

    ``images`` are labelled; ``pool`` are those of stage one, if there is one.
    """

    def __init__(
        self, config: TwoStageConfig, arms: list[Way], images: Images, ranks: Ranks
    ) -> None:
        self.config, self.arms, self.images, self.ranks = config, arms, images, ranks
        self.pool: Images | None = None
        self.start = start_student(config.student, 0.0, 0)
        self.num_heads = own_num_heads(self.start)
        self.classes = list(images.train.classes)
        self.task_teacher = config.task_teacher
        self.tunes_teacher = False
        self.skipped = SkippedLog(None, images.num_images, config.data.max_bad_ratio)
        probing = EvaluateConfig(data=config.data, measure_speed=config.measure_speed)
        self.prober = Prober(probing, images, ranks.device, self.skipped)
        self.notes: list[str] = []

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
            tuning = teacher_config(config)
            batch = fitting_batch(len(images.train), tuning.train)  # as finetune itself will
            tuning = replace(tuning, train=replace(tuning.train, global_batch_size=batch))
            try:
                with in_section("tune_teacher", TuneTeacherOptions):
                    plan = plan_tuning(tuning, images, ranks)
                    runs += rehearsed(plan, [tuning], ranks)
            except UserError as error:
                raise UserError(
                    f"The teacher can't be fine-tuned here: {error} Or name a classifier of these "
                    "classes with --task-teacher."
                ) from error
            if not is_finished_run(tuning.out, *runs[-1][2]):
                load_teacher = rebuilt(plan.student.facts.architecture, classes=self.classes)
            del plan
        for arm in self.arms:
            log.info("Stage two of the arm %s is built once, likewise.", arm.name)
            load_student = rebuilt(of_student if arm.is_generic else of_start)
            tunings = [self._tuning(arm, seed) for seed in range(config.seeds)]
            with in_section("specific", SpecificOptions):
                plan = plan_tuning(tunings[0], images, ranks, load_student, load_teacher)
                of_arm = rehearsed(plan, tunings, ranks)
            for own, (_, _, (_, fingerprint)) in zip(tunings, of_arm, strict=True):
                fingerprint["student"] = _hash_in(Path(own.student))
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
        if facts.num_classes and facts.origin.get("classes") == self.classes:
            log.info("The teacher %s classifies these classes already.", source)
            default = filled(type(config.tune_teacher)(), config.tune_teacher.train.precision)
            if config.tune_teacher != default:
                raise UserError(
                    f"Options of --tune-teacher have no effect: {source} classifies these classes "
                    "already; leave them out."
                )
            self.task_teacher = source
            return False
        self.task_teacher = str(teacher_config(config).out)
        self.tunes_teacher = True
        return True

    def _tuning(self, arm: Way, seed: int) -> Any:
        return arm_config(self.config, arm, seed, self.task_teacher, self.num_heads)

    def teach(self) -> Result | None:
        """Fine-tune the teacher if need be; what it scores, None where no arm has one."""
        if self.task_teacher is None:
            return None
        work, out, costs = (lambda: None), self.config.out, {}
        if self.tunes_teacher:
            log.info("The teacher is fine-tuned.")
            own = teacher_config(self.config)
            work, out, costs = partial(finetune, own), own.out, TUNING
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
        return [first, Run(partial(finetune, own), own.out, TUNING, measure)]

    def _measure(self, source: str, file: Path) -> Result:
        """Scores and costs of a classifier, from a file where the same were measured before."""
        config = self.config
        encoder = load_encoder(source)
        columns = columns_of(encoder, self.classes)
        self.notes += class_notes({f"network {source}": [encoder]}, self.classes)
        asked = {
            "weights": encoder.facts.identity["weights"] or source,
            "data": self.images.fingerprint,
            "evaluation": {"crop_ratio": config.evaluation.crop_ratio},
            "measure_speed": config.measure_speed,
        }
        if columns != list(range(len(self.classes))):
            asked["columns"] = columns

        def measure() -> dict[str, Any]:
            encoder.to(self.ranks.device)
            shown = centre_crops(
                encoder, self.images.holdout, config.evaluation, config.data, self.ranks.device,
                self.skipped,
            )  # fmt: skip
            scores = {} if columns is None else top_scores(encoder, shown, columns)
            # A digit for each image: 1 where it is right.
            texts = {k: "".join(str(int(hit)) for hit in v.per_image) for k, v in scores.items()}
            return {"scores": texts, "cost": self.prober.cost(encoder)}

        known: _Known = fit(remembered(file, asked, measure), _Known, str(file))
        scores = {
            name: score_of(torch.tensor([digit == "1" for digit in text]), name)
            for name, text in known["scores"].items()
        }
        corrupted = {}
        if config.corruptions.wanted and columns is not None:
            corrupted = self._corrupted(source, encoder, file.parent)
        scores |= {name: each.score for name, each in corrupted.items()}
        return Result(scores, dict(known["cost"]), corrupted)

    def _corrupted(self, source: str, encoder: Encoder, keep: Path) -> dict[str, Robustness]:
        config = self.config
        if "output" not in encoder.offered_taps():
            log.warning("%s says its logits alone, so it is not shown corrupted images.", source)
            return {}
        return corrupted_scores(
            {source: encoder}, self.images, config.corruptions, self.ranks.device,
            data=config.data, embed=EmbedOptions(**asdict(config.evaluation)),
            skipped=self.skipped, keep=keep,
        )[source]  # fmt: skip

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
        if config.corruptions.wanted:
            told += [f"Note: {note}" for note in notes_of({"": [self.start]}, config.corruptions)]
        if few := few_images(len(images.holdout)):
            told.append(f"Note:{few}")
        if sees_test_images(config):
            told.append(
                f"Note: {config.unlabelled} holds test images too, so stage one has seen them, "
                "without their labels."
            )
            log.warning(told[-1])
        return told


def _hash_in(folder: Path) -> str:
    return read_record(folder)[1]["weight_hash"] if is_finished_student(folder) else NOT_YET
