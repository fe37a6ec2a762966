"""CamVid: what each stage gives a small segmenter, on a plain ViT and on a TinyViT.

    python -m experiments.camvid.teacher runs/camvid/vit_small.safetensors
    limbeck segment --preset experiments/camvid/teacher.toml --data CAMVID \\
        --data.eval-root CAMVID --data.eval-split test \\
        --student runs/camvid/vit_small.safetensors --out runs/camvid/teacher
    python -m experiments.camvid.run --data CAMVID --weights runs/camvid/vit_small.safetensors \\
        --teacher runs/camvid/teacher --out runs/camvid/arms

Every run is an ordinary run folder: a stopped experiment is continued by the same command.
"""

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import limbeck
from limbeck.data.options import DataOptions
from limbeck.data.scenes.options import SceneOptions
from limbeck.documents import read_json
from limbeck.engine.options import AT_THE_END, OptimOptions, TrainOptions
from limbeck.evaluation.options import MapOptions
from limbeck.evaluation.report import table
from limbeck.methods.options import FeatureOptions
from limbeck.models.build import build_student
from limbeck.models.finished import save_student
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.study.results import cell

NUM_IMAGES = 367
SIDE = 160
BATCH_SIZE = 16
LABELLED = 1_920
UNLABELLED = 4_800  # of 128 px; of larger ones as many pixels
ALONE = LABELLED + round(UNLABELLED * (128 / SIDE) ** 2)
"""Images of an arm without a first stage: as many pixels as the others see in two."""


@dataclass(frozen=True)
class Backbone:
    """``img_size`` of the first stage; ``masked``: what hides patches in this kind of network."""

    name: str
    img_size: int
    masked: str


BACKBONES = {
    "plain": Backbone("vit_tiny:embed_dim=128:depth=8:num_heads=4", 128, "masked-pixel"),
    # Its last tokens stand for 32 x 32 pixels: of 128 px there would be 4 x 4.
    "tiny_vit": Backbone(
        "tiny_vit_5m:embed_dims=16-48-96-160:depths=1-1-3-1:head_dim=16", 192, "simmim"
    ),
}


@dataclass(frozen=True)
class Arm:
    """``first``: nothing, masked pixels or the teacher's features; ``is_taught``: in the second
    stage. Where there is no first the second is longer, unless it ``is_short``."""

    first: str | None = None
    is_taught: bool = False
    is_short: bool = False


ARMS = {
    "from scratch, second stage": Arm(is_short=True),
    "from scratch": Arm(),
    "masked-pixel start": Arm("masked"),
    "specific": Arm(is_taught=True),
    "generic": Arm("feature"),
    "generic + specific": Arm("feature", is_taught=True),
}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--data", type=Path, required=True, help="images/ and annotations/")
    parser.add_argument("--weights", required=True, help="of teacher.py: the first stage's teacher")
    parser.add_argument("--teacher", required=True, help="a run of teacher.toml: the second's")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()
    # Seed by seed: an experiment that is cut short has whole rows of the first seeds. The first
    # stage of "generic" is also that of "generic + specific": they follow each other in one job.
    jobs = [
        (backbone, first, seed)
        for seed in range(arguments.seeds)
        for backbone in BACKBONES
        for first in dict.fromkeys(arm.first for arm in ARMS.values())
    ]
    context = get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, context, torch.set_num_threads, (1,)) as pool:
        for done in [pool.submit(run_job, *job, arguments) for job in jobs]:
            done.result()
    for backbone in BACKBONES:
        found = {
            arm: [_result(arguments.out, backbone, arm, seed) for seed in range(arguments.seeds)]
            for arm in ARMS
        }
        print(f"\n{backbone}: {BACKBONES[backbone].name}\n")
        print(table([_row(arm, results) for arm, results in found.items()]))
        print(table([_by_class(arm, results) for arm, results in found.items()]))


def run_job(backbone: str, first: str | None, seed: int, arguments: argparse.Namespace) -> None:
    """The arms that begin alike, one after the other."""
    logging.getLogger("limbeck").setLevel(logging.WARNING)
    own = BACKBONES[backbone]
    start = arguments.out / f"{backbone}_{first or 'start'}_{seed}"
    if first is None:
        student = StudentOptions(name=f"{own.name}:img_size={SIDE}")
        save_student(build_student(student, seed=seed), start, {})
    else:
        _pretrain(own, first, seed, start, arguments)
    for name, arm in ARMS.items():
        if arm.first == first:
            _segment(arm, seed, start, folder_of(arguments.out, backbone, name, seed), arguments)


def folder_of(out: Path, backbone: str, arm: str, seed: int) -> Path:
    """The run of an arm."""
    return out / f"{backbone}_{re.sub(r'[^a-z]+', '_', arm)}_{seed}"


def _pretrain(
    own: Backbone, first: str, seed: int, out: Path, arguments: argparse.Namespace
) -> None:
    teaching: dict[str, Any] = {"method": own.masked}
    if first == "feature":
        teaching = {
            "method": "feature",
            "feature": FeatureOptions(target="output"),
            "teacher": TeacherOptions(source=arguments.weights),
        }
    limbeck.distill(
        limbeck.DistillConfig(
            **teaching,
            out=out,
            seed=seed,
            student=StudentOptions(name=f"{own.name}:img_size={own.img_size}"),
            data=DataOptions(root=str(arguments.data / "images" / "train"), num_workers=0),
            optim=OptimOptions(base_lr=4e-3),
            train=TrainOptions(
                # A few of the images are held out for the probes.
                epochs=UNLABELLED * (128 / own.img_size) ** 2 / NUM_IMAGES,
                global_batch_size=32,
                probe_every=AT_THE_END,
            ),
        )
    )


def _segment(arm: Arm, seed: int, start: Path, out: Path, arguments: argparse.Namespace) -> None:
    limbeck.segment(
        limbeck.SegmentConfig(
            student=str(start),
            out=out,
            seed=seed,
            img_size=SIDE,
            teacher=TeacherOptions(source=arguments.teacher if arm.is_taught else None),
            data=scenes_of(str(arguments.data)),
            optim=OptimOptions(
                base_lr=1.6e-2,
                schedule="poly",
                cosine_from="start",
                betas=(0.9, 0.999),
            ),
            train=TrainOptions(
                epochs=(LABELLED if arm.first or arm.is_short else ALONE) / NUM_IMAGES,
                global_batch_size=BATCH_SIZE,
                probe_every=AT_THE_END,
                save_every=40,
            ),
            evaluation=MapOptions(mode="whole"),
        )
    )


def scenes_of(root: str) -> SceneOptions:
    """Trained on the training part, scored on the test part."""
    return SceneOptions(root=root, eval_root=root, eval_split="test", num_workers=0)


def _result(out: Path, backbone: str, arm: str, seed: int) -> Mapping[str, Any]:
    record: Mapping[str, Any] = read_json(folder_of(out, backbone, arm, seed) / "student.json")
    return record


def _row(arm: str, results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    names = {"miou": "mIoU %", "macc": "mAcc %", "aacc": "pixels right %"}
    return {"arm": arm} | {
        shown: cell([100 * each["scores"][name] for each in results])
        for name, shown in names.items()
    }


def _by_class(arm: str, results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {"arm": arm} | {
        name: cell([100 * each["scores"].get(f"iou/{name}", 0.0) for each in results])
        for name in results[0]["classes"]
    }


if __name__ == "__main__":
    main()
