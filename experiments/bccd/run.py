"""BCCD: what each stage gives a small detector.

    python -m experiments.camvid.teacher runs/bccd/vit_small.safetensors
    python -m experiments.bccd.run --data BCCD --weights runs/bccd/vit_small.safetensors \\
        --teachers runs/bccd/teachers --out runs/bccd/arms

with a run of teacher.toml in ``teachers/light`` and one of teacher_rcnn.toml in ``teachers/rcnn``.

Every run is an ordinary run folder: a stopped experiment is continued by the same command.
"""

import argparse
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import limbeck
from limbeck.data.options import DataOptions
from limbeck.data.scenes.objects.options import ObjectOptions, ObjectViewOptions
from limbeck.documents import read_json
from limbeck.engine.options import AT_THE_END, OptimOptions, TrainOptions
from limbeck.evaluation.report import table
from limbeck.methods.options import FeatureOptions, FeatureRichnessOptions
from limbeck.models.build import build_student
from limbeck.models.finished import save_student
from limbeck.models.options import DetectorOptions, StudentOptions, TeacherOptions
from limbeck.recipes.study.results import cell

STUDENT = "tiny_vit_5m:embed_dims=16-48-96-160:depths=1-1-3-1:head_dim=16"
NUM_IMAGES = 205
FIRST_SIDE = 192
UNLABELLED = 1707
"""Crops of the first stage, which both detectors start from: as many pixels as the light detector's
arms without a first stage see more of, and as many seconds as those of rcnn train longer."""


@dataclass(frozen=True)
class Kind:
    """A kind of detector, and how it is trained: images of the second stage and of no first."""

    side: int
    batch_size: int
    labelled: int
    alone: int
    base_lr: float
    detector: DetectorOptions
    method: str
    richness: FeatureRichnessOptions = field(default_factory=FeatureRichnessOptions)


KINDS = {
    "light": Kind(256, 16, 1920, 2880, 4.8e-2, DetectorOptions(), "dense-answers"),
    "rcnn": Kind(
        192, 8, 640, 1152, 4.8e-2, DetectorOptions(head="rcnn", width=48), "feature-richness",
        FeatureRichnessOptions(warmup_steps=20),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """``has_first``: a first stage that learns the teacher's features; ``is_taught``: in the second
    stage. Where there is no first the second is longer, unless it ``is_short``."""

    has_first: bool = False
    is_taught: bool = False
    is_short: bool = False


ARMS = {
    "from scratch": Arm(),
    "specific": Arm(is_taught=True),
    "generic": Arm(has_first=True),
    "generic + specific": Arm(has_first=True, is_taught=True),
    "from scratch, second stage": Arm(is_short=True),
}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO's JSON, three splits")
    parser.add_argument("--weights", required=True, help="of camvid's teacher.py: the first's")
    parser.add_argument(
        "--teachers", type=Path, required=True, help="a run for each kind: the second's"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()
    context = get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, context, torch.set_num_threads, (1,)) as pool:
        seeds = range(arguments.seeds)
        _finish(pool.submit(_pretrain, seed, arguments) for seed in seeds)
        # Seed by seed: an experiment that is cut short has whole rows of the first seeds.
        _finish(
            pool.submit(_detect, kind, arm, seed, arguments)
            for seed in seeds for kind in arguments.kinds for arm in ARMS
        )  # fmt: skip
    rows = {
        f"{kind}, {arm}": [folder_of(arguments.out, kind, arm, seed) for seed in seeds]
        for kind in arguments.kinds for arm in ARMS
    }  # fmt: skip
    print(table([row(name, [*map(_result, runs)]) for name, runs in rows.items()]))


def _finish(jobs: Iterable[Future[None]]) -> None:
    waiting = [*jobs]
    try:
        for job in as_completed(waiting):
            job.result()
    finally:  # nothing is begun after a failure
        for job in waiting:
            job.cancel()


def folder_of(out: Path, kind: str, arm: str, seed: int) -> Path:
    """The run of an arm."""
    return out / kind / f"{re.sub(r'[^a-z]+', '_', arm)}_{seed}"


def row(arm: str, scores: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """A line of the table: means and deviations over seeds."""
    names = {"ap": "AP %", "ap50": "AP50 %", "ap75": "AP75 %"}
    names |= {f"ap/{name}": f"{name} %" for name in ("RBC", "WBC", "Platelets")}
    return {"arm": arm} | {
        shown: cell([100 * each.get(name, 0.0) for each in scores]) for name, shown in names.items()
    }


def _start(seed: int, has_first: bool, out: Path) -> Path:
    return out / f"{'first' if has_first else 'start'}_{seed}"


def _pretrain(seed: int, arguments: argparse.Namespace) -> None:
    """Both starts of a seed: drawn weights, and those that the first stage made of them."""
    logging.getLogger("limbeck").setLevel(logging.WARNING)
    side = max(kind.side for kind in KINDS.values())
    drawn = build_student(StudentOptions(name=f"{STUDENT}:img_size={side}"), seed=seed)
    save_student(drawn, _start(seed, False, arguments.out), {})
    limbeck.distill(
        limbeck.DistillConfig(
            method="feature",
            feature=FeatureOptions(target="output"),
            teacher=TeacherOptions(source=arguments.weights),
            out=_start(seed, True, arguments.out),
            seed=seed,
            student=StudentOptions(name=f"{STUDENT}:img_size={FIRST_SIDE}"),
            data=DataOptions(root=str(arguments.data / "train"), num_workers=0),
            optim=OptimOptions(base_lr=4e-3),
            train=TrainOptions(
                # A few of the images are held out for the probes.
                epochs=UNLABELLED / NUM_IMAGES,
                global_batch_size=32,
                probe_every=AT_THE_END,
            ),
        )
    )


def _detect(name: str, arm_name: str, seed: int, arguments: argparse.Namespace) -> None:
    logging.getLogger("limbeck").setLevel(logging.WARNING)
    kind, arm = KINDS[name], ARMS[arm_name]
    taught: dict[str, Any] = {}
    if arm.is_taught:
        taught = {"method": kind.method, "feature_richness": kind.richness}
        taught["teacher"] = TeacherOptions(source=str(arguments.teachers / name))
    num_images = kind.labelled if arm.has_first or arm.is_short else kind.alone
    limbeck.detect(
        limbeck.DetectConfig(
            student=str(_start(seed, arm.has_first, arguments.out)),
            out=folder_of(arguments.out, name, arm_name, seed),
            seed=seed,
            img_size=kind.side,
            detector=kind.detector,
            **taught,
            data=objects_of(arguments.data),
            views=ObjectViewOptions(vertical_flip_prob=0.5),
            optim=replace(limbeck.DetectConfig.optim, base_lr=kind.base_lr),
            train=replace(
                limbeck.DetectConfig.train,
                epochs=num_images / NUM_IMAGES,
                global_batch_size=kind.batch_size,
                probe_every=AT_THE_END,
                save_every=40,
            ),
        )
    )


def objects_of(root: Path, split: str = "test") -> ObjectOptions:
    """Trained on the training part, scored on the test part."""
    return ObjectOptions(root=str(root), eval_root=str(root), eval_split=split, num_workers=0)


def _result(run: Path) -> Mapping[str, float]:
    scores: Mapping[str, float] = read_json(run / "student.json")["scores"]
    return scores


if __name__ == "__main__":
    main()
