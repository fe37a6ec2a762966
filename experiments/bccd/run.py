"""BCCD: what each stage gives a small detector.

    python -m experiments.camvid.teacher runs/bccd/vit_small.safetensors
    limbeck detect --preset experiments/bccd/teacher.toml --data BCCD \\
        --data.eval-root BCCD --data.eval-split test --out runs/bccd/teacher
    python -m experiments.bccd.run --data BCCD --weights runs/bccd/vit_small.safetensors \\
        --teacher runs/bccd/teacher --out runs/bccd/arms

Every run is an ordinary run folder: a stopped experiment is continued by the same command.
"""

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
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
from limbeck.methods.options import FeatureOptions
from limbeck.models.build import build_student
from limbeck.models.finished import save_student
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.study.results import cell

STUDENT = "tiny_vit_5m:embed_dims=16-48-96-160:depths=1-1-3-1:head_dim=16"
NUM_IMAGES = 205
SIDE, FIRST_SIDE = 256, 192
BATCH_SIZE = 16
ALONE = 180 * BATCH_SIZE
LABELLED = 120 * BATCH_SIZE
UNLABELLED = round((ALONE - LABELLED) * (SIDE / FIRST_SIDE) ** 2)
"""Images of the two stages: together as many pixels as those of an arm without a first stage."""


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
    parser.add_argument("--teacher", required=True, help="a run of teacher.toml: the second's")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()
    # Seed by seed: an experiment that is cut short has whole rows of the first seeds. The first
    # stage of "generic" is also that of "generic + specific": they follow each other in one job.
    jobs = [(has_first, seed) for seed in range(arguments.seeds) for has_first in (False, True)]
    context = get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, context, torch.set_num_threads, (1,)) as pool:
        for done in [pool.submit(run_job, *job, arguments) for job in jobs]:
            done.result()
    found = {
        arm: [_result(arguments.out, arm, seed) for seed in range(arguments.seeds)] for arm in ARMS
    }
    print(table([row(arm, [each["scores"] for each in results]) for arm, results in found.items()]))


def run_job(has_first: bool, seed: int, arguments: argparse.Namespace) -> None:
    """The arms that begin alike, one after the other."""
    logging.getLogger("limbeck").setLevel(logging.WARNING)
    start = arguments.out / f"{'first' if has_first else 'start'}_{seed}"
    if has_first:
        _pretrain(seed, start, arguments)
    else:
        student = StudentOptions(name=f"{STUDENT}:img_size={SIDE}")
        save_student(build_student(student, seed=seed), start, {})
    for name, arm in ARMS.items():
        if arm.has_first == has_first:
            _detect(arm, seed, start, folder_of(arguments.out, name, seed), arguments)


def folder_of(out: Path, arm: str, seed: int) -> Path:
    """The run of an arm."""
    return out / f"{re.sub(r'[^a-z]+', '_', arm)}_{seed}"


def row(arm: str, scores: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """A line of the table: means and deviations over seeds."""
    names = {"ap": "AP %", "ap50": "AP50 %", "ap75": "AP75 %"}
    names |= {f"ap/{name}": f"{name} %" for name in ("RBC", "WBC", "Platelets")}
    return {"arm": arm} | {
        shown: cell([100 * each.get(name, 0.0) for each in scores]) for name, shown in names.items()
    }


def _pretrain(seed: int, out: Path, arguments: argparse.Namespace) -> None:
    limbeck.distill(
        limbeck.DistillConfig(
            method="feature",
            feature=FeatureOptions(target="output"),
            teacher=TeacherOptions(source=arguments.weights),
            out=out,
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


def _detect(arm: Arm, seed: int, start: Path, out: Path, arguments: argparse.Namespace) -> None:
    limbeck.detect(
        limbeck.DetectConfig(
            student=str(start),
            out=out,
            seed=seed,
            img_size=SIDE,
            teacher=TeacherOptions(source=arguments.teacher if arm.is_taught else None),
            data=objects_of(arguments.data),
            views=ObjectViewOptions(vertical_flip_prob=0.5),
            optim=replace(limbeck.DetectConfig.optim, base_lr=4.8e-2),
            train=replace(
                limbeck.DetectConfig.train,
                epochs=(LABELLED if arm.has_first or arm.is_short else ALONE) / NUM_IMAGES,
                global_batch_size=BATCH_SIZE,
                probe_every=AT_THE_END,
                save_every=40,
            ),
        )
    )


def objects_of(root: Path, split: str = "test") -> ObjectOptions:
    """Trained on the training part, scored on the test part."""
    return ObjectOptions(root=str(root), eval_root=str(root), eval_split=split, num_workers=0)


def _result(out: Path, arm: str, seed: int) -> Mapping[str, Any]:
    record: Mapping[str, Any] = read_json(folder_of(out, arm, seed) / "student.json")
    return record


if __name__ == "__main__":
    main()
