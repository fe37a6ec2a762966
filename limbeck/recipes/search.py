"""``limbeck search``: a smaller and faster student, found by progressive contraction.

TinyViT, arXiv 2207.10666: start from a large shape, train slightly smaller ones briefly, go on from
the best, until the limits hold. The paper's code, limits and steps are not published; ours are in
``models/contraction.py`` and ``recipes/rounds.py``.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limbeck.config import BatchSize, NumThreads, Repeats, Seed, options
from limbeck.data.options import CropOptions, DataOptions, TargetsOptions
from limbeck.engine.options import AT_THE_END, OptimOptions, TrainOptions
from limbeck.errors import UserError
from limbeck.methods import PerMethodOptions
from limbeck.models.contraction import factors_of
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes import checks
from limbeck.recipes import distill as distillation
from limbeck.recipes.probes import ProbeOptions
from limbeck.recipes.search_results import Search, report, write

if TYPE_CHECKING:
    from limbeck.recipes.rounds import MeasureCost

log = logging.getLogger("limbeck")

__all__ = ["LimitOptions", "SearchConfig", "check", "report", "search"]

COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
LIMITS = {
    "params": ("params", COUNTS), "macs": ("macs", COUNTS), "latency": ("latency_ms", {"ms": 1.0}),
}  # fmt: skip
"""Options of ``LimitOptions``: the cost that each is of, and its units. The dear one last."""


@options
class LimitOptions:
    """How large the found student may be; at least one. Of the student without a classifier."""

    params: str = ""
    """Parameters, such as 5M; or a part of the seed's, such as 50%."""
    macs: str = ""
    """Multiplications with their addition for one image, such as 1.3G or 50%."""
    latency: str = ""
    """Time of a forward pass on this machine, such as 8ms or 50%."""


@options
class LatencyOptions:
    """How latency is measured: median of turns with the seed's."""

    runtime: Literal["auto", "torch", "onnx"] = "auto"
    """torch: PyTorch; onnx: ONNX Runtime (extra: onnx), both on the CPU in fp32; auto: the latter
    where it is installed."""
    threads: NumThreads = 1
    batch_size: BatchSize = 1
    num_turns: Repeats = 15


@options
class SearchConfig(PerMethodOptions):
    """Contract a student's shape step by step until it is within limits: train slightly smaller
    shapes briefly, go on from the best one. Beside it the seed thinned by width alone is trained.
    """

    out: Path = Path("runs/search")
    """Folder of the runs, of table.md, search.json and pictures, and of the winner."""
    overwrite: bool = False
    """Replace another search there."""
    rounds: Repeats = 4
    """Rounds until the limits hold; in each the limits shrink by the same ratio."""
    factors: tuple[str, ...] = ()
    """What may shrink; all that the family has if not given: of a TinyViT width, embed_dims.0 to .3
    (a stage each), depths.0 to .3, window_sizes.1 to .3, mbconv_expand_ratio, mlp_ratio, head_dim;
    of a plain ViT width, depth, num_heads, mlp_ratio."""
    seeds: Repeats = 1
    """Trainings of each candidate, whose mean counts."""
    seed: Seed = 0
    """Seed of the first of them."""
    inherit: bool = False
    """Candidates start from the weights of the shape that they were contracted from, cut to their
    size, instead of afresh."""
    method: str = "sparse-logit"
    """What candidates are trained with, as for limbeck distill: sparse-logit is TinyViT's."""
    method_options: tuple[str, ...] = ()
    """Options of your own method, such as beta=2.0 (values as in TOML)."""

    limits: LimitOptions = LimitOptions()
    latency: LatencyOptions = LatencyOptions()
    student: StudentOptions = StudentOptions()
    """The seed: what is contracted."""
    teacher: TeacherOptions = TeacherOptions()
    targets: TargetsOptions = TargetsOptions()
    data: DataOptions = DataOptions(holdout_ratio=0.2)
    crop: CropOptions = CropOptions()
    optim: OptimOptions = OptimOptions()
    train: TrainOptions = TrainOptions(epochs=10, probe_every=AT_THE_END)
    """Of each candidate: brief."""
    probes: ProbeOptions = ProbeOptions()
    """How held-out images are scored."""


def check(config: SearchConfig) -> None:
    """All that can be wrong without torch or an image; raises UserError."""
    checks.check_one_process("search is one process, and trains one candidate after the other")
    distillation.check(training(config))
    if config.student.weights is not None:
        raise UserError(
            "student.weights bring a shape that can't be contracted by name; name the seed's shape "
            "by --student, and let candidates start from its training with --inherit."
        )
    if not _stated(config.limits):
        raise UserError(
            "A search needs a limit: --limits.params 5M, --limits.macs 1G, --limits.latency 8ms, "
            "or parts of the seed's, such as --limits.latency 50%."
        )


def training(config: SearchConfig, **changes: Any) -> distillation.DistillConfig:
    """The distillation of a candidate: what the search has in common with ``limbeck distill``."""
    shared = {f.name for f in fields(distillation.DistillConfig)} & {f.name for f in fields(config)}
    return distillation.DistillConfig(**{name: getattr(config, name) for name in shared} | changes)


def read_limit(text: str, name: str) -> tuple[float, bool]:
    """(value, whether it is a part of the seed's) of "5.4M", "8ms" or "50%"; raises UserError."""
    _, units = LIMITS[name]
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) ?(\w*|%)", text.strip())
    if found is None or found[2] not in (*units, "%") or float(found[1]) <= 0:
        known = ", ".join(f"5{unit}" for unit in units)
        raise UserError(f"--limits.{name} {text}: write it as {known}, or as 50% of the seed's.")
    if found[2] != "%":
        return float(found[1]) * units[found[2]], False
    if float(found[1]) >= 100:
        raise UserError(f"--limits.{name} {text} is no smaller than the seed; lower it.")
    return float(found[1]) / 100, True


def search(config: SearchConfig) -> Search:
    """Run the search, or go on with it; raises UserError for bad input, Interrupted on Ctrl-C.

    Every candidate is an ordinary run in a folder of ``config.out``, and what is known of it is
    written there at once: the same command goes on where it was stopped.
    """
    check(config)
    from limbeck.data.workers import lost_workers_explained
    from limbeck.engine.checkpoint import open_run
    from limbeck.engine.distributed import ranks_session
    from limbeck.evaluation.latency import describe_machine
    from limbeck.models.whole_shape import whole_shape
    from limbeck.recipes.chain import copy_student
    from limbeck.recipes.images import check_holdout, open_images
    from limbeck.recipes.meter import Meter, runtime_of
    from limbeck.recipes.networks import build_networks, teacher_identity
    from limbeck.recipes.precision import resolved_plain, settle
    from limbeck.recipes.rounds import run_rounds
    from limbeck.recipes.search_scores import Scorer
    from limbeck.recipes.search_trials import Trials

    seed = whole_shape(config.student)
    _check_factors(config, seed)
    with ranks_session(config.train.device) as ranks, lost_workers_explained():
        config = settle(config, ranks)
        images = open_images(config.data)
        check_holdout(images)
        nets = build_networks(training(config), ranks.device)
        scorer = Scorer(config, images, nets, ranks.device)
        run = open_run(
            config.out,
            {"verb": "search", **resolved_plain(config)},
            {
                "data": images.fingerprint,
                "teacher": teacher_identity(
                    config.teacher.source, nets.teacher and nets.teacher.facts
                ),
                "targets": nets.reader and nets.reader.manifest.identity,
                "machine": describe_machine(),
                "runtime": runtime_of(config.latency),
            },
            overwrite=config.overwrite,
        )
        meter = Meter(config.out / "costs.json", seed, config.latency)
        trials = Trials(config, meter, scorer.score)
        outcome = run_rounds(
            seed,
            _resolve(config.limits, seed, meter.cost),
            config.rounds,
            meter.cost,
            trials.train_and_score,
            factors=config.factors,
            inherits=config.inherit,
        )
        found = Search(config.out, outcome, scorer.name, meter.sentence(), config.inherit)
        found.winner_dir.mkdir(exist_ok=True)
        copy_student(trials.folder(outcome.winner, 0), found.winner_dir)
        write(found)
        run.finish()
    return found


def _check_factors(config: SearchConfig, seed: StudentOptions) -> None:
    for factor in config.factors:
        checks.check_choice(factor, factors_of(seed), f"factor of {seed.name}")


def _stated(limits: LimitOptions) -> dict[str, tuple[float, bool]]:
    """What ``read_limit`` reads of each limit that is stated, by name of cost."""
    return {
        cost: read_limit(text, name)
        for name, (cost, _) in LIMITS.items()
        if (text := getattr(limits, name))
    }


def _resolve(limits: LimitOptions, seed: StudentOptions, cost: MeasureCost) -> dict[str, float]:
    return {
        name: value * cost(seed, name) if is_part else value
        for name, (value, is_part) in _stated(limits).items()
    }
