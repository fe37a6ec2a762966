"""``limbeck two-stage``: generic, then specific distillation, and what each stage gives.

Generic-to-Specific Distillation of Masked Autoencoders (G2SD), arXiv 2302.14771: first the student
learns from a masked autoencoder without labels, then from that teacher fine-tuned for the task,
and from the labels. What the released code leaves to its user is done here: the teacher is
fine-tuned where no classifier is named, and the single stages are run for comparison if asked for.

Every run is an ordinary one in a folder of its own, so the command that was stopped goes on, and
arms and seeds can be added to it.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING

from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.methods import PerMethodOptions
from limbeck.models.options import TeacherOptions
from limbeck.recipes.run import checks
from limbeck.recipes.study.engine import Arm, Engine
from limbeck.recipes.study.options import TwoStageConfig, TwoStageSegmentConfig
from limbeck.recipes.study.runs import in_section, needs_teacher, open_existing
from limbeck.recipes.study.stage_results import TwoStages, report
from limbeck.recipes.study.stage_two.classify import CLASSIFY
from limbeck.recipes.study.stage_two.contract import StageTwo
from limbeck.recipes.study.stage_two.segment import SEGMENT
from limbeck.recipes.study.stages import Way, read_arms, stage_one_config, stage_one_data
from limbeck.recipes.train import distill as distillation

if TYPE_CHECKING:
    from limbeck.recipes.run.images import Images

__all__ = ["TwoStageConfig", "TwoStageSegmentConfig", "check", "report", "two_stage"]

TASKS: dict[str, StageTwo] = {"classify": CLASSIFY, "segment": SEGMENT}

Config = TwoStageConfig | TwoStageSegmentConfig


def check(config: Config) -> list[Way]:
    """All that can be wrong without opening an image or a weights file; the arms."""
    arms, task = read_arms(config.arms), TASKS[config.task]
    checks.check_one_process(
        "two-stage is one process, and runs one stage after the other",
        ", or the stages by themselves with it: limbeck distill and finetune or segment",
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
        run = task.arm(config, arm, 0, config.task_teacher or config.teacher.source, None)
        with in_section("specific", type(config.specific)):
            task.check(replace(run, student=config.student.name))
    return arms


def _check_teacher(config: Config) -> None:
    """The teacher can be fine-tuned, as far as its name tells."""
    teacher, task = config.teacher, TASKS[config.task]
    if teacher.source is None:
        raise UserError(
            "Stage two needs a teacher: name a masked autoencoder with --teacher, which is "
            f"fine-tuned here first, or a {task.network} of these classes with --task-teacher."
        )
    for name in ("model_name", "patch_size"):
        if getattr(teacher, name) is not None:
            raise UserError(
                f"A weights file that needs teacher.{name} can't be fine-tuned here; name a "
                f"{task.network} with --task-teacher."
            )
    with in_section("tune_teacher", type(config.tune_teacher)):
        task.check(task.teacher(config))


def _check_effects(config: TwoStageConfig, arms: list[Way]) -> None:
    """No option is of a stage that is not run."""
    chosen = f"--arms {' '.join(arm.name for arm in arms)}"
    is_taught = any(arm.is_taught for arm in arms)
    if any(arm.is_generic for arm in arms):
        reads_teacher = needs_teacher(config.method, config)
    else:
        reads_teacher = False
        names = [field.name for field in fields(PerMethodOptions)]
        names += ["method", "method_options", "unlabelled", "crop", "optim", "train"]
        checks.check_unset(config, names, f"with {chosen}, which have no stage one", "--")
    if not is_taught:
        why = f"with {chosen}, which have no teacher in stage two"
        checks.check_unset(config.specific, TASKS[config.task].taught, why, "--specific.")
        checks.check_unset(config, ["tune_teacher"], why, "--")
    elif config.task_teacher is not None:
        checks.check_unset(config, ["tune_teacher"], "with --task-teacher", "--")
    if reads_teacher:
        return
    names = [field.name for field in fields(TeacherOptions)]
    why = f"with {chosen} here, where nothing is learnt from it"
    if is_taught:
        names.remove("precision")  # of the classifier that helps, too
        if config.task_teacher is None:
            names = ["drop_path_rate", *TASKS[config.task].unread]
            why = f"with {chosen} here: it is of stage one's teacher"
    checks.check_unset(config.teacher, names, why, "--teacher.")


def two_stage(config: Config) -> TwoStages:
    """Run all arms with all seeds, or go on with them.

    Raises UserError for bad input, before anything trains, RunError where a run under way can't go
    on, and Interrupted when asked to stop (after saving).
    """
    arms = check(config)
    from limbeck.data.workers import lost_workers_explained
    from limbeck.engine.checkpoint import open_run
    from limbeck.engine.distributed import ranks_session
    from limbeck.recipes.run.precision import settle, settled_plain, stands_for
    from limbeck.recipes.run.scenes import open_for_distilling, without_masks
    from limbeck.recipes.study.stage_runs import StageRuns

    with ranks_session(config.specific.train.device) as ranks, lost_workers_explained():
        images = TASKS[config.task].open(config)
        pool = None
        if any(arm.is_generic for arm in arms):
            data = stage_one_data(config)
            is_same = data == config.data
            pool = without_masks(images) if is_same else open_for_distilling(data)
        asked = _with_batches_of(config, images, pool)
        config = settle(asked, ranks)
        chains = StageRuns(TASKS[config.task], config, arms, images, ranks)
        chains.pool = pool
        runs = chains.rehearse()
        plain = settled_plain(config)
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
        engine = Engine()
        told = chains.sentences()
        found = TwoStages(config.out, arms, told, engine.results, task=chains.task)
        found.teacher = chains.teach()
        found.equal += [f"Note: {note}" for note in chains.bench.notes]
        engine.finish_all(
            [Arm(arm.name, partial(chains.runs, arm), arm.words) for arm in arms],
            config.seeds,
            after=found.write,
        )
        run.finish()
    return found


def _with_batches_of(config: TwoStageConfig, images: Images, pool: Images | None) -> TwoStageConfig:
    """Both stages with batches that their images fill; ``pool`` are those of stage one."""
    from limbeck.recipes.run.resolved import fit_batch

    if pool is not None:
        config = replace(config, train=fit_batch(config.train, len(pool.train)))
    train = fit_batch(config.specific.train, len(images.train), option="--specific.train")
    return replace(config, specific=replace(config.specific, train=train))
