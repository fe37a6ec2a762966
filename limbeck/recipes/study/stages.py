"""The arms of a two-stage distillation, and the ordinary runs of stage one."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.methods import PerMethodOptions
from limbeck.models.options import TeacherOptions
from limbeck.recipes.run.checks import check_choice
from limbeck.recipes.run.options import DistillConfig, ProbeOptions
from limbeck.recipes.study.options import StagesConfig
from limbeck.recipes.study.runs import needs_teacher


@dataclass(frozen=True)
class Way:
    """One way to a network for a task: ``is_generic``: it starts from stage one's student, not
    afresh; ``is_taught``: the fine-tuned teacher helps, not the labels alone. ``words`` say so.
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


def stage_one_data(config: StagesConfig) -> DataOptions:
    """Stage one sees all images, with or without labels, but those that are held out."""
    if config.unlabelled is None:
        return replace(config.data, label_fraction=1.0, label_seed=0)
    # Nothing of it is scored, so nothing needs to be held out.
    names = {field.name for field in fields(DataOptions)} - {
        *("eval_root", "eval_split", "label_column", "max_holdout"),
        *("label_fraction", "label_seed"),
    }
    kept = {name: getattr(config.data, name) for name in names}
    return DataOptions(**kept | {"root": config.unlabelled, "holdout_ratio": 0.0})


def sees_test_images(config: StagesConfig) -> bool:
    """Whether the other images of stage one lie around, or among, those that are held out."""
    if config.unlabelled is None:
        return False
    other, held_out = (
        Path(root).expanduser().resolve()
        for root in (config.unlabelled, config.data.eval_root or config.data.root)
    )
    return other.is_relative_to(held_out) or held_out.is_relative_to(other)


def stage_one_config(config: StagesConfig, seed: int) -> DistillConfig:
    """Stage one with a seed, as ``limbeck distill`` runs it."""
    names = [field.name for field in fields(PerMethodOptions)]
    names += ["method", "method_options", "student", "crop", "optim", "train", "overwrite"]
    shown = {field.name for field in fields(config.evaluation)} & {"crop_ratio", "batch_size"}
    return DistillConfig(
        out=folder_of(config.out, seed, "stage_one"),
        seed=seed,
        teacher=config.teacher if needs_teacher(config.method, config) else TeacherOptions(),
        data=stage_one_data(config),
        probes=ProbeOptions(**{name: getattr(config.evaluation, name) for name in shown}),
        **{name: getattr(config, name) for name in names},
    )
