"""The arms of a two-stage distillation, and the ordinary runs that they are made of."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.methods import PerMethodOptions
from limbeck.models.options import TeacherOptions, choose_pool
from limbeck.recipes.run.checks import check_choice
from limbeck.recipes.run.options import DistillConfig, FinetuneConfig, ProbeOptions
from limbeck.recipes.study.options import TuningOptions
from limbeck.recipes.study.runs import needs_teacher, tuning_run, without_layer_decay

if TYPE_CHECKING:
    from limbeck.recipes.study.options import TwoStageConfig

DIST_HEAD_INIT_STD = 0.02  # of the head that the teacher has to itself: G2SD, as released


@dataclass(frozen=True)
class Way:
    """One way to a classifier: ``is_generic``: it starts from stage one's student, not afresh;
    ``is_taught``: the fine-tuned teacher helps, not the labels alone. ``words`` say so.
    """

    name: str
    is_generic: bool
    is_taught: bool
    words: str


ARMS = {
    arm.name: arm
    for arm in (
        Way("fine-tune", False, False, "neither stage: from scratch, by the labels alone"),
        Way("specific", False, True, "stage two alone: from scratch, by labels and teacher"),
        Way("generic", True, False, "stage one, and then the labels alone"),
        Way("both", True, True, "stage one, and then labels and teacher"),
    )
}


def read_arms(names: tuple[str, ...]) -> list[Way]:
    """The arms in their order; raises UserError for one that there is not, or that comes twice."""
    if not names or len(set(names)) < len(names):
        raise UserError("--arms names each arm once, and at least one.")
    for name in names:
        check_choice(name, ARMS, "arm")
    return [ARMS[name] for name in names]


def folder_of(out: Path, seed: int, name: str) -> Path:
    """Where a run is: "stage_one", whose student the arms 'generic' and 'both' share; "start", the
    untrained one that those from scratch share; or an arm's classifier.
    """
    return out / f"seed_{seed}" / name


def stage_one_data(config: TwoStageConfig) -> DataOptions:
    """Stage one sees all images, with or without labels, but those that are held out."""
    data = replace(config.data, label_fraction=1.0, label_seed=0)
    if config.unlabelled is None:
        return data
    # Nothing of it is scored, so nothing needs to be held out.
    default = DataOptions()
    return replace(
        data,
        root=config.unlabelled,
        eval_root="",
        eval_split=default.eval_split,
        label_column=None,
        holdout_ratio=0.0,
        max_holdout=default.max_holdout,
    )


def sees_test_images(config: TwoStageConfig) -> bool:
    """Whether the other images of stage one lie around, or among, those that are held out."""
    if config.unlabelled is None:
        return False
    other, held_out = (
        Path(root).expanduser().resolve()
        for root in (config.unlabelled, config.data.eval_root or config.data.root)
    )
    return other.is_relative_to(held_out) or held_out.is_relative_to(other)


def stage_one_config(config: TwoStageConfig, seed: int) -> DistillConfig:
    """Stage one with a seed, as ``limbeck distill`` runs it."""
    names = [field.name for field in fields(PerMethodOptions)]
    names += ["method", "method_options", "student", "crop", "optim", "train", "overwrite"]
    shown = config.evaluation
    return DistillConfig(
        out=folder_of(config.out, seed, "stage_one"),
        seed=seed,
        teacher=config.teacher if needs_teacher(config.method, config) else TeacherOptions(),
        data=stage_one_data(config),
        probes=ProbeOptions(crop_ratio=shown.crop_ratio, batch_size=shown.batch_size),
        **{name: getattr(config, name) for name in names},
    )


def teacher_config(config: TwoStageConfig) -> FinetuneConfig:
    """The fine-tuning that makes the teacher of stage two out of stage one's."""
    teacher = config.teacher
    assert teacher.source is not None
    return tuning_run(
        config.tune_teacher,
        student=teacher.source,
        img_size=teacher.img_size,
        num_heads=teacher.num_heads,
        head="single",
        **_shared(config, config.out / "teacher", 0),
    )


def arm_config(
    config: TwoStageConfig, arm: Way, seed: int, task_teacher: str | None, num_heads: int | None
) -> FinetuneConfig:
    """The fine-tuning at the end of an arm. ``task_teacher``: the classifier that helps.

    ``num_heads``: the student's own head count, where stage one may have changed it.
    """
    specific, start = config.specific, "stage_one" if arm.is_generic else "start"
    run = _shared(config, folder_of(config.out, seed, arm.name), seed) | {
        "student": str(folder_of(config.out, seed, start)),
        "num_heads": num_heads,
    }
    is_fresh = not arm.is_generic and config.student.weights is None
    run["optim"] = without_layer_decay(specific.optim) if is_fresh else specific.optim
    if arm.is_taught:
        if specific.head != "single" and specific.dist_head_init_std is None:
            run["dist_head_init_std"] = DIST_HEAD_INIT_STD
        run["teacher"] = TeacherOptions(source=task_teacher, precision=config.teacher.precision)
        return tuning_run(specific, **run)
    # Without a teacher there is nothing for a second head to learn: the first one stays as it is.
    pool = choose_pool(specific.head, specific.global_pool)
    shared = {field.name: getattr(specific, field.name) for field in fields(TuningOptions)}
    return FinetuneConfig(
        **shared
        | {"head": "single", "global_pool": pool, "head_init_std": specific.head_init_std}
        | run
    )


def _shared(config: TwoStageConfig, out: Path, seed: int) -> dict[str, Any]:
    return {
        "out": out,
        "seed": seed,
        "overwrite": config.overwrite,
        "data": config.data,
        "evaluation": config.evaluation,
    }
