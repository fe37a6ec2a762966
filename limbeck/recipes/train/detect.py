"""``limbeck detect``: a student and images with boxes, and a teacher if wanted, to a detector."""

import shlex
from pathlib import Path

from limbeck.errors import UserError
from limbeck.methods import BOX_METHODS, PerBoxMethodOptions
from limbeck.recipes.run import checks
from limbeck.recipes.train.options import DetectConfig


def check(config: DetectConfig, needs_student: bool = True) -> None:
    """All that can be wrong without opening an image or a weights file; raises UserError."""
    checks.check_dense(config, BOX_METHODS, PerBoxMethodOptions)
    options = {name: getattr(config, name.replace("-", "_")) for name in BOX_METHODS}
    chosen, head = options.get(config.method), config.detector.head
    if config.teacher.source and chosen and head not in chosen.heads:
        fit = [name for name, own in options.items() if head in own.heads]
        raise UserError(
            f"--method {config.method} is for heads that are {' or '.join(chosen.heads)}; of "
            f"{head} choose --method {' or '.join(fit)}."
        )
    if config.detector.freeze:
        checks.check_unset(config, ["drop_path_rate"], "with --detector.freeze")
    checks.check_start(config.student, needs_student)


def detect(config: DetectConfig) -> Path:
    """Run the training, or continue it; returns the run's folder with the finished detector.

    Raises UserError for bad input, RunError where a run under way can't go on, and Interrupted
    when asked to stop (after saving).
    """
    check(config)
    from limbeck.recipes.run.images import check_holdout
    from limbeck.recipes.run.objects import open_object_images
    from limbeck.recipes.run.train import session, train
    from limbeck.recipes.train.detection import plan_detection

    with session(config, open_object_images) as (config, images, ranks):
        check_holdout(images)
        return train(plan_detection(config, images, ranks), ranks)


def report(run_dir: Path) -> str:
    """The scores of a finished run, for the command line."""
    from limbeck.models.finished import read_record
    from limbeck.recipes.run.scenes import few_scenes

    record = read_record(run_dir)[1]
    student = shlex.quote(str(run_dir))
    scores = record["scores"]
    by_class = {name.partition("/")[2]: value for name, value in scores.items() if "/" in name}
    lines = [f"  {name}: AP {100 * value:.1f} %" for name, value in by_class.items()]
    return (
        f"Held-out images at the end: AP {100 * scores['ap']:.1f} %, AP50 "
        f"{100 * scores['ap50']:.1f} %."
        f"{few_scenes(record['data']['num_holdout'])}\n" + "\n".join(lines) + "\n"
        f"Best threshold of scores: {scores['threshold']:.2f} (F1 {100 * scores['f1']:.1f} %).\n"
        f"The detector is in {run_dir} (student.safetensors, student.json).\n"
        f"Pictures:   limbeck predict {student} IMAGES\n"
        f'In Python:  detector = limbeck.load("{run_dir}")'
    )
