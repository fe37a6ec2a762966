"""``limbeck distill``: from unlabelled images and a teacher to a small encoder."""

import shlex
from dataclasses import replace
from pathlib import Path

from limbeck.recipes.run import checks
from limbeck.recipes.run.options import DistillConfig
from limbeck.recipes.train.chain import (
    check_chain,
    check_first_teacher,
    distill_chain,
    finished_stages,
)


def check(config: DistillConfig) -> None:
    """All that can be wrong without opening an image or a weights file; raises UserError."""
    if config.chain:
        check_chain(config)
        check_first_teacher(config)
    checks.check_pretraining(config)
    checks.check_has_teacher(config)


def distill(config: DistillConfig) -> Path:
    """Run the distillation, or continue it; returns the run's folder with the finished student.

    Raises UserError for bad input, RunError where a run under way can't go on, and Interrupted
    when asked to stop (after saving).
    """
    check(config)
    from limbeck.recipes.run.scenes import open_for_distilling
    from limbeck.recipes.run.train import session, train
    from limbeck.recipes.targets.reading import open_networks
    from limbeck.recipes.train.pretraining import plan_pretraining

    config = replace(config, chain="".join(config.chain.split()))  # spaces mean nothing
    with session(config, open_for_distilling) as (config, images, ranks):
        if config.chain:
            return distill_chain(config, images, ranks)
        nets = open_networks(config, ranks.device)
        return train(plan_pretraining(config, nets, images, ranks), ranks)


def report(run_dir: Path) -> str:
    """What to do with a finished run, for the command line."""
    student = shlex.quote(str(run_dir))
    stages = [f"Stage {folder.name} is in {folder}.\n" for folder in finished_stages(run_dir)]
    return "".join(stages) + (
        f"The student is in {run_dir} (student.safetensors, student.json).\n"
        f"Fine-tune it:  limbeck finetune --student {student} --data LABELLED_IMAGES\n"
        f"Did it help?   limbeck evaluate --student {student} --data LABELLED_IMAGES\n"
        f'In Python:     encoder = limbeck.load("{run_dir}")'
    )
