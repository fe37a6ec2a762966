"""A small TinyViT from a bigger one's class probabilities, live and stored; K classes, E views.

    limbeck finetune --preset experiments/cifar10_tinyvit/teacher.toml \\
        --data CIFAR/cifar10_train.parquet --data.eval-root CIFAR/cifar10_test.parquet \\
        --out runs/cifar10/tinyvit_teacher
    python -m experiments.cifar10_tinyvit.run --data CIFAR --teacher runs/cifar10/tinyvit_teacher \\
        --out runs/cifar10/tinyvit

All arms and seeds have the same images, crops, steps and student, and one phase of training. The
views of a store are those of its own seed, whatever the student's.
"""

import argparse
import json
import logging
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow.parquet as pq
import torch

import limbeck
from limbeck.data.options import (
    CropOptions,
    DataOptions,
    MixOptions,
    StoreOptions,
    TargetsOptions,
    ViewOptions,
)
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.evaluation.report import table
from limbeck.methods.options import SparseLogitOptions
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.run.options import CropEvalOptions, ProbeOptions

STUDENT = "tiny_vit_5m:img_size=32:embed_dims=32-64-80-160:depths=1-1-3-1:head_dim=16"
NUM_IMAGES = 2500
EPOCHS = 20
BATCH_SIZE = 100
AT_THE_END = 1_000_000  # probe_every: once, with the last step
CROP = CropOptions(scale=(0.4, 1.0))
METHOD = SparseLogitOptions(rand_augment="", erase_prob=0.0)
TIMES_FILE = "seconds.json"


@dataclass(frozen=True)
class Arm:
    """``store`` (K, E), or a live teacher, or (neither) the images' own labels."""

    store: tuple[int, int] | None = None
    is_live: bool = False
    is_mixed: bool = False


ARMS = {
    "scratch: labels, mixup, cutmix, RandAugment": Arm(is_mixed=True),
    "hard labels": Arm(),
    "live logits": Arm(is_live=True),
    **{f"stored, K {k}, E {e}": Arm((k, e)) for e in (1, 5, 20) for k in (1, 3, 10)},
}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10_*.parquet")
    parser.add_argument("--teacher", type=Path, required=True, help="a run of teacher.toml")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    take_images(arguments)
    stores = {ARMS[name].store for name in arguments.arms} - {None}
    # Seed by seed: an experiment that is cut short has whole rows of the first seeds.
    jobs = [(name, seed) for seed in range(arguments.seeds) for name in arguments.arms]
    context = get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, context, torch.set_num_threads, (1,)) as pool:
        written = {s: pool.submit(store, s, arguments) for s in sorted(stores)}
        costs = {s: each.result() for s, each in written.items()}
        pending = {job: pool.submit(run_arm, *job, arguments) for job in jobs}
        results = {job: each.result() for job, each in pending.items()}
    print(table([_row(name, results, costs, arguments.seeds) for name in arguments.arms]))


def take_images(arguments: argparse.Namespace) -> None:
    """The first images of the training set, which is shuffled, in a file of their own."""
    file = images_file(arguments)
    if not file.exists():
        whole = pq.read_table(arguments.data / "cifar10_train.parquet")
        pq.write_table(whole.slice(0, arguments.images), file)


def images_file(arguments: argparse.Namespace) -> Path:
    return arguments.out / f"images_{arguments.images}.parquet"


def data_of(arguments: argparse.Namespace) -> DataOptions:
    return DataOptions(
        root=str(images_file(arguments)),
        eval_root=str(arguments.data / "cifar10_test.parquet"),
        num_workers=0,
    )


def store(kind: tuple[int, int], arguments: argparse.Namespace) -> dict[str, float]:
    """Write a store of (K, E); its bytes and seconds."""
    logging.getLogger("limbeck").setLevel(logging.WARNING)
    top_k, num_views = kind
    out = arguments.out / f"store_{top_k}_{num_views}"
    times = out.with_suffix(".json")
    start = time.monotonic()
    limbeck.store_targets(
        limbeck.StoreTargetsConfig(
            out=str(out),
            sparse_logit=METHOD,
            store=StoreOptions(top_k=top_k, num_views=num_views),
            student=StudentOptions(name=STUDENT),
            teacher=TeacherOptions(source=str(arguments.teacher)),
            data=data_of(arguments),
            crop=CROP,
        )
    )
    if not times.exists():  # a second call finds all of it there
        times.write_text(json.dumps({"seconds": time.monotonic() - start}))
    seconds: float = json.loads(times.read_text())["seconds"]
    return {"seconds": seconds, "bytes": sum(f.stat().st_size for f in out.iterdir())}


def run_arm(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """One student: its accuracy on the test images (0..1) and the seconds of its training."""
    logging.getLogger("limbeck").setLevel(logging.WARNING)
    arm = ARMS[name]
    out = arguments.out / (re.sub(r"\W+", "_", name) + f"_{seed}")
    start = time.monotonic()
    _train(arm, seed, out, arguments)
    times = out / TIMES_FILE
    if not times.exists():
        times.write_text(json.dumps(time.monotonic() - start))
    return {"top1": _test(out, arguments), "seconds": json.loads(times.read_text())}


def _train(arm: Arm, seed: int, out: Path, arguments: argparse.Namespace) -> None:
    optim = OptimOptions(base_lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05)
    train = TrainOptions(
        epochs=arguments.epochs,
        global_batch_size=BATCH_SIZE,
        probe_every=AT_THE_END,
        precision="fp32",
    )
    if arm.is_live or arm.store:
        source = arm.store and str(arguments.out / f"store_{arm.store[0]}_{arm.store[1]}")
        limbeck.distill(
            limbeck.DistillConfig(
                method="sparse-logit",
                sparse_logit=METHOD,
                out=out,
                seed=seed,
                student=StudentOptions(name=STUDENT),
                teacher=TeacherOptions(source=str(arguments.teacher) if arm.is_live else None),
                targets=TargetsOptions(source=source),
                data=data_of(arguments),
                crop=CROP,
                optim=optim,
                train=train,
                probes=ProbeOptions(crop_ratio=1.0, num_train=500, num_test=500, batch_size=250),
            )
        )
        return
    views = ViewOptions(scale=CROP.scale)
    mix = MixOptions()
    if arm.is_mixed:
        views = ViewOptions(scale=CROP.scale, rand_augment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
        mix = MixOptions(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)
    limbeck.finetune(
        limbeck.FinetuneConfig(
            student=STUDENT,
            out=out,
            seed=seed,
            drop_path_rate=0.0,
            head_init_std=0.02,
            data=data_of(arguments),
            views=views,
            mix=mix,
            optim=optim,
            train=train,
            evaluation=CropEvalOptions(crop_ratio=1.0, batch_size=250),
        )
    )


def _test(out: Path, arguments: argparse.Namespace) -> float:
    """Top-1 of a finished student's own classifier on all test images."""
    from limbeck.data.loader import eval_batches
    from limbeck.data.open import open_source
    from limbeck.data.skipped import SkippedLog
    from limbeck.records import Tap

    student, tap = limbeck.load(out).eval(), Tap("logits")
    options = data_of(arguments)
    batches = eval_batches(
        open_source(options.eval_root, options, ""),
        data=options,
        img_size=32,
        crop_ratio=1.0,
        batch_size=250,
        device=torch.device("cpu"),
        skipped=SkippedLog(None, 10_000, 0.0),
    )
    with torch.no_grad():
        hits = [
            (student(batch.images, None, (tap,)).taps[tap].argmax(dim=1) == batch.labels)
            for batch in batches
        ]
    return float(torch.cat(hits).float().mean())


def _row(
    name: str,
    results: dict[tuple[str, int], dict[str, float]],
    costs: dict[tuple[int, int] | None, dict[str, float]],
    seeds: int,
) -> dict[str, str]:
    runs = [results[name, seed] for seed in range(seeds)]
    top1 = [100 * run["top1"] for run in runs]
    spread = statistics.stdev(top1) if seeds > 1 else 0.0
    cost = costs.get(ARMS[name].store)
    return {
        "arm": name,
        "top-1, %": f"{statistics.mean(top1):.1f} ± {spread:.1f}",
        "training, s": f"{statistics.median(run['seconds'] for run in runs):.0f}",
        "storing, s": f"{cost['seconds']:.0f}" if cost else "",
        "on disk, MiB": f"{cost['bytes'] / 2**20:.2f}" if cost else "",
    }


if __name__ == "__main__":
    main()
