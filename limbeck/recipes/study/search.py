"""``limbeck search``: a smaller and faster student, found by progressive contraction.

TinyViT, arXiv 2207.10666: start from a large shape, train slightly smaller ones briefly, go on from
the best, until the limits hold. The paper's code, limits and steps are not published; ours are in
``models/contraction.py`` and ``recipes/study/rounds.py``.
"""

import re

from limbeck.errors import UserError
from limbeck.models.budgets import COUNTS, is_budget
from limbeck.models.contraction import factors_of
from limbeck.models.options import StudentOptions
from limbeck.recipes.run import checks
from limbeck.recipes.study.options import LimitOptions, SearchConfig, training
from limbeck.recipes.study.search_results import Search, report, write
from limbeck.recipes.train import distill as distillation

__all__ = ["LimitOptions", "SearchConfig", "check", "report", "search"]

LIMITS = {
    "params": ("params", COUNTS), "macs": ("macs", COUNTS), "latency": ("latency_ms", {"ms": 1.0}),
}  # fmt: skip
"""Options of ``LimitOptions``: the cost that each is of, and its units. The dear one last."""


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
    from limbeck.recipes.run.budget import choose_student, runtime_of
    from limbeck.recipes.run.images import check_holdout, open_images
    from limbeck.recipes.run.networks import teacher_identity
    from limbeck.recipes.run.precision import settle, settled_plain
    from limbeck.recipes.study.candidates import Candidates
    from limbeck.recipes.study.meter import Meter
    from limbeck.recipes.study.rounds import run_rounds
    from limbeck.recipes.study.search_scores import Scorer
    from limbeck.recipes.targets.reading import open_networks
    from limbeck.recipes.train.chain import copy_student

    def seed_of(student: StudentOptions) -> StudentOptions:
        seed = whole_shape(student)
        for factor in config.factors:
            checks.check_choice(factor, factors_of(seed), f"factor of {seed.name}")
        return seed

    if not is_budget(config.student.name):
        seed_of(config.student)
    with ranks_session(config.train.device) as ranks, lost_workers_explained():
        config = choose_student(config, ranks, lambda own: [training(own)], seed_of)
        config, seed = settle(config, ranks), seed_of(config.student)
        images = open_images(config.data)
        check_holdout(images)
        nets = open_networks(training(config), ranks.device)
        scorer = Scorer(config, images, nets, ranks.device)
        run = open_run(
            config.out,
            {"verb": "search", **settled_plain(config)},
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
        candidates = Candidates(config, meter, scorer.score)
        limits = {
            name: value * meter.cost(seed, name) if is_part else value
            for name, (value, is_part) in _stated(config.limits).items()
        }
        outcome = run_rounds(
            seed, limits, config.rounds, meter.cost, candidates.train_and_score,
            factors=config.factors, inherits=config.inherit,
        )  # fmt: skip
        found = Search(config.out, outcome, scorer.name, meter.sentence(), config.inherit)
        found.winner_dir.mkdir(exist_ok=True)
        copy_student(candidates.folder(outcome.winner, 0), found.winner_dir)
        write(found)
        run.finish()
    return found


def _stated(limits: LimitOptions) -> dict[str, tuple[float, bool]]:
    """What ``read_limit`` reads of each limit that is stated, by name of cost."""
    return {
        cost: read_limit(text, name)
        for name, (cost, _) in LIMITS.items()
        if (text := getattr(limits, name))
    }
