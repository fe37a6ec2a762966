"""Progressive contraction (TinyViT, arXiv 2207.10666) on CIFAR-10, and shrinking by width alone.

    limbeck finetune --preset experiments/cifar10_tinyvit/teacher.toml \\
        --data CIFAR/cifar10_train.parquet --data.eval-root CIFAR/cifar10_test.parquet \\
        --out runs/cifar10/tinyvit_teacher
    python -m experiments.cifar10_search.run --data CIFAR --teacher runs/cifar10/tinyvit_teacher \\
        --out runs/cifar10/search

Targets are stored once; the search trains from them and scores on a part of the training images
that is held out. Then the winner and the seed thinned by width alone are trained longer, with seeds
that the search has not used, and scored on the test images, which it has not seen.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch

import limbeck
from limbeck.data.options import CropOptions, DataOptions, StoreOptions, TargetsOptions
from limbeck.engine.distributed import ranks_session
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.evaluation.report import table
from limbeck.methods.options import SparseLogitOptions
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.run.images import open_images
from limbeck.recipes.run.options import ProbeOptions
from limbeck.recipes.run.precision import settle
from limbeck.recipes.study.options import LatencyOptions, LimitOptions, SearchConfig, training
from limbeck.recipes.study.results import cell
from limbeck.recipes.study.search import report
from limbeck.recipes.study.search_results import Search
from limbeck.recipes.study.search_scores import Scorer
from limbeck.recipes.targets.reading import open_networks

SEED = "tiny_vit_5m:img_size=32:embed_dims=32-64-128-160:depths=1-2-3-1:head_dim=16"
LIMITS = LimitOptions(params="40%", macs="45%", latency="65%")
# Of one small image the time goes into starting operations, which a smaller width does not spare.
LATENCY = LatencyOptions(batch_size=32)
CROP = CropOptions(scale=(0.4, 1.0))
METHOD = SparseLogitOptions(rand_augment="", erase_prob=0.0)
NUM_VIEWS = 4
BATCH_SIZE = 128
AT_THE_END = 1_000_000  # probe_every: once, with the last step


def search_config(data: Path, targets: Path, out: Path, epochs: float) -> SearchConfig:
    """The search: three rounds, every candidate from its parent's weights."""
    return SearchConfig(
        out=out,
        student=StudentOptions(name=SEED),
        rounds=3,
        inherit=True,
        limits=LIMITS,
        latency=LATENCY,
        targets=TargetsOptions(source=str(targets)),
        data=DataOptions(root=str(data / "cifar10_train.parquet"), holdout_ratio=0.1),
        crop=CROP,
        sparse_logit=METHOD,
        optim=OptimOptions(base_lr=4e-3),
        train=TrainOptions(epochs=epochs, global_batch_size=BATCH_SIZE, probe_every=AT_THE_END),
        probes=ProbeOptions(crop_ratio=1.0, batch_size=250, num_train=500, num_test=500),
    )


def store(config: SearchConfig, teacher: Path) -> None:
    """What the teacher says of all views of all images, held-out ones too."""
    limbeck.store_targets(
        limbeck.StoreTargetsConfig(
            out=str(config.targets.source),
            student=config.student,
            teacher=TeacherOptions(source=str(teacher)),
            data=config.data,
            crop=config.crop,
            sparse_logit=config.sparse_logit,
            store=StoreOptions(num_views=NUM_VIEWS, batch_size=250),
        )
    )


def confirm(config: SearchConfig, found: Search, test: Path, epochs: float, seeds: int) -> str:
    """A table of winner and baseline: trained longer, afresh, and scored on the test images."""
    shapes = {"winner": found.outcome.winner, "width alone": found.outcome.baseline}
    data = replace(config.data, holdout_ratio=0.05, eval_root=str(test))
    full = replace(
        config, student=StudentOptions(name=SEED), data=data,
        train=replace(config.train, epochs=epochs),
    )  # fmt: skip
    with ranks_session("auto") as ranks:
        full = settle(full, ranks)
        nets = open_networks(training(full), ranks.device)
        scorer = Scorer(full, open_images(data), nets, ranks.device)
    rows = []
    for name, candidate in shapes.items():
        if candidate is None:
            continue
        scores = []
        for seed in range(1, seeds + 1):
            out = config.out.parent / f"{config.out.name}_full" / f"{name.replace(' ', '_')}_{seed}"
            run = limbeck.distill(training(full, student=candidate.shape, out=out, seed=seed))
            scores.append(scorer.score(run))
        costs = candidate.costs
        rows.append(
            {
                "shape": candidate.shape.text,
                "": name,
                "test top-1 %": cell([100 * score for score in scores]),
                "params, M": f"{costs['params'] / 1e6:.3f}",
                "MACs, M": f"{costs['macs'] / 1e6:.2f}",
                "latency, ms": f"{costs['latency_ms']:.2f}",
            }
        )
    return table(rows)


def main() -> None:
    """The command line of the experiment."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10_*.parquet")
    parser.add_argument("--teacher", type=Path, required=True, help="a run of teacher.toml")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=0.75, help="of each candidate")
    parser.add_argument("--full-epochs", type=float, default=4.0, help="of winner and baseline")
    parser.add_argument("--seeds", type=int, default=3, help="of winner and baseline")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(2)
    config = search_config(
        arguments.data, arguments.out.parent / f"{arguments.out.name}_targets", arguments.out,
        arguments.epochs,
    )  # fmt: skip
    store(config, arguments.teacher)
    found = limbeck.search(config)
    print(report(found))
    if arguments.seeds:
        test = arguments.data / "cifar10_test.parquet"
        print(confirm(config, found, test, arguments.full_epochs, arguments.seeds))


if __name__ == "__main__":
    main()
