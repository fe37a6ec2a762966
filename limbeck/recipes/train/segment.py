"""``limbeck segment``: a student and images with masks, and a teacher if wanted, to a segmenter."""

import shlex
from pathlib import Path

from limbeck.methods import MAP_METHODS, PerMapMethodOptions
from limbeck.recipes.run import checks
from limbeck.recipes.train.options import SegmentConfig


def check(config: SegmentConfig, needs_student: bool = True) -> None:
    """All that can be wrong without opening an image or a weights file; raises UserError."""
    checks.check_dense(config, MAP_METHODS, PerMapMethodOptions)
    if config.segmenter.freeze:
        names = ["drop_path_rate", "decay_positions"]
        checks.check_unset(config, names, "with --segmenter.freeze")
    checks.check_start(config.student, needs_student)


def segment(config: SegmentConfig) -> Path:
    """Run the training, or continue it; returns the run's folder with the finished segmenter.

    Raises UserError for bad input, RunError where a run under way can't go on, and Interrupted
    when asked to stop (after saving).
    """
    check(config)
    from limbeck.recipes.run.images import check_holdout
    from limbeck.recipes.run.scenes import open_scene_images
    from limbeck.recipes.run.train import session, train
    from limbeck.recipes.train.segmentation import plan_segmentation

    with session(config, open_scene_images) as (config, images, ranks):
        check_holdout(images)
        return train(plan_segmentation(config, images, ranks), ranks)


def report(run_dir: Path) -> str:
    """The scores of a finished run, for the command line."""
    from limbeck.models.finished import read_record
    from limbeck.recipes.run.scenes import few_scenes

    record = read_record(run_dir)[1]
    student = shlex.quote(str(run_dir))
    scores = record["scores"]
    by_class = {name.partition("/")[2]: value for name, value in scores.items() if "/" in name}
    lines = [f"  {name}: {100 * value:.1f} %" for name, value in by_class.items()]
    return (
        f"Held-out scenes at the end: mIoU {100 * scores['miou']:.1f} %, mean accuracy "
        f"{100 * scores['macc']:.1f} %, pixels right {100 * scores['aacc']:.1f} %."
        f"{few_scenes(record['data']['num_holdout'])}\n" + "\n".join(lines) + "\n"
        f"The segmenter is in {run_dir} (student.safetensors, student.json).\n"
        f"Pictures:   limbeck predict {student} IMAGES\n"
        f'In Python:  segmenter = limbeck.load("{run_dir}")'
    )
