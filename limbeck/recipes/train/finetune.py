"""``limbeck finetune``: a student and labelled images, and a teacher if wanted, to a classifier."""

import shlex
from dataclasses import replace
from pathlib import Path

from limbeck.data.options import DataOptions, MixOptions
from limbeck.errors import UserError
from limbeck.models.options import choose_pool
from limbeck.recipes.run import checks
from limbeck.recipes.run.options import FinetuneConfig


def with_labels(data: DataOptions, fraction: float, seed: int) -> DataOptions:
    """The data with a part of the labels, drawn anew for each seed."""
    return replace(data, label_fraction=fraction, label_seed=seed if fraction < 1 else 0)


def check(config: FinetuneConfig, needs_student: bool = True) -> None:
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
    if config.rel_pos is None:
        checks.check_unset(config, ["layer_scale"], "without --rel-pos")
    elif config.head not in (None, "single"):
        raise UserError(f"rel_pos is for a single head, not {config.head}; leave one of them out.")
    checks.check_start(config.student, needs_student)
    is_bare = bool(config.student) and checks.is_bare_name(config.student)
    if config.keep_blocks is not None and is_bare:
        raise UserError(
            f"keep_blocks has no effect with {config.student}, which starts from scratch; leave it "
            "out, or name weights."
        )
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
    from limbeck.recipes.run.images import check_holdout, check_labelled
    from limbeck.recipes.run.train import session, train
    from limbeck.recipes.train.tuning import plan_tuning

    with session(config) as (config, images, ranks):
        check_labelled(images, config.data)
        check_holdout(images)
        checks.check_mixing(config.mix, config.train)
        return train(plan_tuning(config, images, ranks), ranks)


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
