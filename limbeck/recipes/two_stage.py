"""``limbeck two-stage``: generic, then specific distillation, and what each stage gives.

Generic-to-Specific Distillation of Masked Autoencoders (G2SD), arXiv 2302.14771: first the student
learns from a masked autoencoder without labels, then from that teacher fine-tuned for the task,
and from the labels. What the released code leaves to its user is done here: the teacher is
fine-tuned where no classifier is named, and the single stages are run for comparison if asked for.

Every run is an ordinary one in a folder of its own, so the command that was stopped goes on, and
arms and seeds can be added to it. Imports of torch are inside the functions: the config and its
checks must answer without it.
"""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.config import NotNegative, Rate, Repeats, options, to_plain
from limbeck.data.options import (
    CorruptionOptions,
    CropOptions,
    DataOptions,
    MixOptions,
    ViewOptions,
)
from limbeck.engine.options import AT_THE_END, POSITIONS_AND_TOKENS, OptimOptions, TrainOptions
from limbeck.errors import UserError
from limbeck.methods import PerMethodOptions, PerTaskMethodOptions
from limbeck.models.options import HeadKind, StudentOptions, TeacherOptions
from limbeck.recipes import checks
from limbeck.recipes import distill as distillation
from limbeck.recipes import finetune as finetuning
from limbeck.recipes.probes import CropEvalOptions
from limbeck.recipes.rehearsal import in_section, open_existing
from limbeck.recipes.stage_results import TwoStages, report, write
from limbeck.recipes.stages import (
    Arm,
    arm_config,
    read_arms,
    stage_one_config,
    stage_one_data,
    stage_one_needs_teacher,
    teacher_config,
)
from limbeck.recipes.tuning import TuningOptions

if TYPE_CHECKING:
    from limbeck.recipes.images import Images

log = logging.getLogger("limbeck")

__all__ = [
    "SpecificOptions",
    "TuneTeacherOptions",
    "TwoStageConfig",
    "check",
    "report",
    "two_stage",
]

STRONG_VIEWS = ViewOptions(scale=(0.08, 1.0), rand_augment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
STRONG_MIX = MixOptions(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)


@options
class SpecificOptions(TuningOptions, PerTaskMethodOptions):
    """Stage two, and the fine-tuning of the other arms. Defaults: G2SD's, in smaller
    batches and with a relative warm-up.
    """

    head: HeadKind = "distilled-last"
    """Of the arms with a teacher, as for limbeck finetune; the others have its first classifier."""
    head_init_std: NotNegative = 2e-5
    """Standard deviation of a fresh classifier's weights."""
    dist_head_init_std: NotNegative | None = None
    """Likewise of a second head: 0.02, G2SD's, if not given."""
    method: str = "logit"
    """How the teacher helps, as for limbeck finetune: logit, nkd (of a single head), or your own as
    module:Class."""
    method_options: tuple[str, ...] = ()
    """Options of your own method, such as beta=2.0 (values as in TOML)."""
    views: ViewOptions = STRONG_VIEWS
    mix: MixOptions = STRONG_MIX
    optim: OptimOptions = OptimOptions(
        base_lr=1e-3,
        min_lr=1e-6,
        betas=(0.9, 0.999),
        layer_decay=0.75,
        no_decay_names=POSITIONS_AND_TOKENS,
    )
    """layer_decay keeps what stage one has learnt: an arm from scratch has none."""
    train: TrainOptions = TrainOptions(epochs=200, probe_every=AT_THE_END)


@options
class TuneTeacherOptions(TuningOptions):
    """The fine-tuning of the teacher. Defaults: MAE's for ViT-B, in smaller batches."""

    drop_path_rate: Rate = 0.1
    views: ViewOptions = STRONG_VIEWS
    mix: MixOptions = STRONG_MIX
    optim: OptimOptions = OptimOptions(
        base_lr=5e-4,
        min_lr=1e-6,
        betas=(0.9, 0.999),
        layer_decay=0.65,
        no_decay_names=POSITIONS_AND_TOKENS,
    )


@options
class TwoStageConfig(PerMethodOptions):
    """Distil a student without labels (stage one), then with labels and the fine-tuned teacher
    (stage two); compare with one stage alone, and with none.
    """

    arms: tuple[str, ...] = ("both",)
    """What to run: both, generic (stage one, then labels alone), specific (stage two alone, from
    scratch), fine-tune (labels alone, from scratch). All four tell what each stage gives."""
    seeds: Repeats = 1
    """Runs of each arm, with the seeds 0, 1 and so on."""
    out: Path = Path("runs/two_stage")
    """Folder of the runs, of table.md and two_stage.json."""
    overwrite: bool = False
    """Replace other runs there."""
    task_teacher: str | None = None
    """The teacher of stage two, a classifier of these classes: a run, a weights file, timm:NAME or
    hf:NAME. If not given, --teacher is fine-tuned here, unless it is such a classifier itself."""
    unlabelled: str | None = None
    """Other images for stage one, such as a larger folder without labels; those of --data if not
    given."""
    method: str = "decoder-feature"
    """Stage one's, as for limbeck distill: decoder-feature (G2SD), relation, feature or cls-token
    (TinyMIM), attention-map (D-MAE), masked-pixel (MAE, without a teacher), ..., or your own as
    module:Class."""
    method_options: tuple[str, ...] = ()
    """Options of your own method, such as beta=2.0 (values as in TOML)."""
    measure_speed: bool = True
    """Also measure images per second of each network on this machine."""

    student: StudentOptions = StudentOptions()
    teacher: TeacherOptions = TeacherOptions()
    """Of stage one; and, fine-tuned, of stage two."""
    data: DataOptions = DataOptions(holdout_ratio=0.2)
    crop: CropOptions = CropOptions()
    optim: OptimOptions = OptimOptions()
    train: TrainOptions = TrainOptions(probe_every=AT_THE_END)
    """Of stage one, as crop and optim; without probes on the way, which would count as time."""
    specific: SpecificOptions = SpecificOptions()
    tune_teacher: TuneTeacherOptions = TuneTeacherOptions()
    evaluation: CropEvalOptions = CropEvalOptions()
    corruptions: CorruptionOptions = CorruptionOptions()


def check(config: TwoStageConfig) -> list[Arm]:
    """All that can be wrong without opening an image or a weights file; the arms."""
    arms = read_arms(config.arms)
    checks.check_one_process(
        "two-stage is one process, and runs one stage after the other",
        ", or the stages by themselves with it: limbeck distill and finetune",
    )
    checks.check_data(config.data)
    if config.unlabelled is not None:
        if config.unlabelled == config.data.root:
            raise UserError("--unlabelled and --data are the same images; leave --unlabelled out.")
        checks.check_data(DataOptions(root=config.unlabelled))
    _check_effects(config, arms)
    if any(arm.is_generic for arm in arms):
        distillation.check(stage_one_config(config, 0))
    if config.task_teacher is not None:
        checks.check_source(config.task_teacher, any_model=True)
    elif any(arm.is_taught for arm in arms):
        _check_teacher(config)
    for arm in arms:
        run = arm_config(config, arm, 0, config.task_teacher or config.teacher.source, None)
        with in_section("specific", SpecificOptions):
            finetuning.check(replace(run, student=config.student.name))
    return arms


def _check_teacher(config: TwoStageConfig) -> None:
    """The teacher can be fine-tuned, as far as its name tells."""
    teacher = config.teacher
    if teacher.source is None:
        raise UserError(
            "Stage two needs a teacher: name a masked autoencoder with --teacher, which is "
            "fine-tuned here first, or a classifier of these classes with --task-teacher."
        )
    for name in ("model_name", "patch_size"):
        if getattr(teacher, name) is not None:
            raise UserError(
                f"A weights file that needs teacher.{name} can't be fine-tuned here; name a "
                "classifier with --task-teacher."
            )
    with in_section("tune_teacher", TuneTeacherOptions):
        finetuning.check(teacher_config(config))


def _check_effects(config: TwoStageConfig, arms: list[Arm]) -> None:
    """No option is of a stage that is not run."""
    chosen = f"--arms {' '.join(arm.name for arm in arms)}"
    is_taught = any(arm.is_taught for arm in arms)
    if any(arm.is_generic for arm in arms):
        reads_teacher = stage_one_needs_teacher(config)
    else:
        reads_teacher = False
        names = [field.name for field in fields(PerMethodOptions)]
        names += ["method", "method_options", "unlabelled", "crop", "optim", "train"]
        _check_unset(config, names, "", f"{chosen}, which have no stage one")
    if not is_taught:
        names = [field.name for field in fields(PerTaskMethodOptions)]
        names += ["method", "method_options", "dist_head_init_std"]
        why = f"{chosen}, which have no teacher in stage two"
        _check_unset(config.specific, names, "specific.", why)
        _check_unset(config, ["tune_teacher"], "", why)
    elif config.task_teacher is not None:
        _check_unset(config, ["tune_teacher"], "", "--task-teacher")
    if reads_teacher:
        return
    names = [field.name for field in fields(TeacherOptions)]
    why = f"{chosen} here, where nothing is learnt from it"
    if is_taught:
        names.remove("precision")  # of the classifier that helps, too
        if config.task_teacher is None:
            names, why = ["drop_path_rate"], f"{chosen} here: it is of stage one's teacher"
    _check_unset(config.teacher, names, "teacher.", why)


def _check_unset(section: Any, names: list[str], prefix: str, why: str) -> None:
    defaults = {field.name: field.default for field in fields(section)}
    for name in names:
        if getattr(section, name) != defaults[name]:
            raise UserError(
                f"--{prefix}{name.replace('_', '-')} has no effect with {why}; leave it out."
            )


def two_stage(config: TwoStageConfig) -> TwoStages:
    """Run all arms with all seeds, or go on with them.

    Raises UserError for bad input, before anything trains, RunError where a run under way can't go
    on, and Interrupted when asked to stop (after saving).
    """
    arms = check(config)
    from limbeck.data.workers import lost_workers_explained
    from limbeck.engine.checkpoint import open_run
    from limbeck.engine.distributed import ranks_session
    from limbeck.recipes.images import check_holdout, open_images
    from limbeck.recipes.precision import settle, stands_for
    from limbeck.recipes.robustness import check_images
    from limbeck.recipes.stage_trials import StageTrials

    with ranks_session(config.specific.train.device) as ranks, lost_workers_explained():
        images = open_images(config.data)
        _check_labels(config, images)
        check_holdout(images)
        check_images(images, config.corruptions)
        pool = None
        if any(arm.is_generic for arm in arms):
            data = stage_one_data(config)
            pool = images if data == config.data else open_images(data)
        asked = _with_batches_of(config, images, pool)
        config = settle(asked, ranks)
        trials = StageTrials(config, arms, images, ranks)
        trials.pool = pool
        runs = trials.rehearse()
        plain = to_plain(config)
        run = open_run(
            config.out,
            # Arms and seeds may be added: each run in the folder knows the rest.
            {
                "verb": "two-stage",
                **{name: plain[name] for name in ("student", "data")},
                "precision": stands_for(asked, config),
            },
            {"data": images.fingerprint},
            overwrite=config.overwrite,
        )
        open_existing(runs)
        found = TwoStages(config.out, arms, trials.sentences())
        found.teacher = trials.teach()
        found.equal += [f"Note: {note}" for note in trials.notes]
        for seed in range(config.seeds):
            for arm in arms:
                log.info("Arm %s, seed %d of %d: %s.", arm.name, seed, config.seeds, arm.words)
                found.results.setdefault(arm.name, {})[seed] = trials.run(arm, seed)
                write(found)
        run.finish()
    return found


def _with_batches_of(config: TwoStageConfig, images: Images, pool: Images | None) -> TwoStageConfig:
    """Both stages with batches that their images fill; ``pool`` are those of stage one."""
    from limbeck.recipes.steps import fit_batch

    if pool is not None:
        config = replace(config, train=fit_batch(config.train, len(pool.train)))
    train = fit_batch(config.specific.train, len(images.train), option="--specific.train")
    return replace(config, specific=replace(config.specific, train=train))


def _check_labels(config: TwoStageConfig, images: Images) -> None:
    if not images.is_labelled:
        root = config.data.eval_root if images.train.classes else config.data.root
        raise UserError(
            f"{root} has no labels, and stage two needs them: class sub-folders (data/cat/1.jpg) "
            "or a label column. Images for stage one alone are --unlabelled; stage one alone is "
            "limbeck distill."
        )
