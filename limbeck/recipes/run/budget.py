"""A student by budget: the most capable shape that is within it, measured, told and kept.

It is chosen once: the config that is saved names the shape, and the budget beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

import torch

from limbeck.config import from_plain, to_plain
from limbeck.documents import read_json
from limbeck.engine.checkpoint import saved_config
from limbeck.engine.distributed import Ranks, on_main_rank
from limbeck.errors import UserError
from limbeck.evaluation.cost import count_macs
from limbeck.evaluation.latency import busy_note, describe_machine, interleaved, threads
from limbeck.evaluation.report import table
from limbeck.exports.passes import RUNTIMES, RuntimeName, open_passes, runtime_shipped_with
from limbeck.models.budgets import FAMILIES, Budget, is_budget, read_budget
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions
from limbeck.models.whole_shape import build_outline
from limbeck.recipes.run.networks import build_networks, loader_of, method_class, method_options
from limbeck.recipes.run.options import DistillConfig, LatencyOptions
from limbeck.recipes.run.precision import filled

log = logging.getLogger("limbeck")

Config = TypeVar("Config")
WORDS = {"params": ("M parameters", 1e-6), "macs": ("GMACs", 1e-9), "latency_ms": ("ms", 1.0)}
TOO_MUCH = {"params": "too many parameters", "macs": "too many MACs", "latency_ms": "too slow"}
WIDTH = 100  # of the table
UNTRAINED = "can't be trained"
ROUNDS = 3
"""Of a measurement, of which the fastest counts: other work on the machine can only slow it."""


@dataclass
class Candidate:
    """A shape, what it costs as far as that is known, and why it is not taken."""

    family: str
    shape: StudentOptions
    costs: Budget
    why: str = ""

    @property
    def power(self) -> tuple[float, float]:
        """What makes the more capable: MACs, then parameters."""
        return self.costs["macs"], self.costs["params"]

    def row(self) -> dict[str, Any]:
        """For the table."""
        numbers = {
            words: float(f"{scale * self.costs[cost]:.3g}")
            for cost, (words, scale) in WORDS.items()
            if cost in self.costs
        }
        plain = replace(self.shape, img_size=None, patch_size=None)  # of all the same
        return {"shape": plain.text, **numbers, "": self.why or "fits"}


def choose_student(
    config: Config,
    ranks: Ranks,
    trainings: Callable[[Any], Iterable[DistillConfig]],
    *checks: Callable[[StudentOptions], object],
    tell: Callable[[str], None] = log.info,
) -> Config:
    """The config with a shape that is within its student's budget; as it is if it has none.

    On all ranks the same. A run that goes on keeps its own. All ``trainings`` of the config must be
    able to train the shape, and the ``checks`` take it, which else raise UserError.
    """
    asked = getattr(config, "student", None)
    if not isinstance(asked, StudentOptions) or not is_budget(asked.name):
        return config

    def found() -> StudentOptions:
        if kept := _saved(config):
            shape = from_plain(StudentOptions, kept, "student")
            tell(f"student: {shape.text}, with which what is there was begun")
            return shape
        latency = getattr(config, "latency", LatencyOptions())
        chosen = _choose(asked, latency, (*checks, _Trial([*trainings(config)])), tell)
        return replace(chosen, budget=asked.name)

    return replace(config, student=on_main_rank(found))  # type: ignore[type-var]


def _saved(config: Any) -> dict[str, Any] | None:
    """The student of the run in the config's folder, if it was begun with the same options."""
    try:
        student = read_json(config.out / "config.json").get("student")
    except UserError:  # there is none; what is damaged ``open_run`` tells
        return None
    asked = config.student  # beside a budget only sizes can be stated
    stated = {"budget": asked.name, "img_size": asked.img_size, "patch_size": asked.patch_size}
    if not isinstance(student, dict) or any(student.get(k) != v for k, v in stated.items()):
        return None
    return student if saved_config(config.out, to_plain(config) | {"student": student}) else None


class _Trial:
    """Builds what is to be trained around a shape, without training; each teacher is read once."""

    def __init__(self, trainings: list[DistillConfig]) -> None:
        self.trainings = [filled(each, "fp32") for each in trainings]
        self.loaders: dict[Any, Any] = {}

    def __call__(self, shape: StudentOptions) -> None:
        for training in self.trainings:
            if training.targets.source is None:  # a store is read whole, so only once, later
                load = loader_of(method_options(training, method_class(training.method)))
                load = self.loaders.setdefault(load, cache(load))
                build_networks(replace(training, student=shape), torch.device("cpu"), load)


def _choose(
    asked: StudentOptions,
    latency: LatencyOptions,
    checks: Iterable[Callable[[StudentOptions], object]],
    tell: Callable[[str], None],
) -> StudentOptions:
    """Tells the outcome; raises UserError where nothing is within the budget."""
    limits = read_budget(asked.name)
    runtime = runtime_of(latency)
    count = f"{latency.threads} thread{'s' if latency.threads > 1 else ''}"
    how = f"{RUNTIMES[runtime]}, fp32, batch {latency.batch_size}, {count}"
    log.info("Looking for the most capable student that is %s ...", asked.name)
    if "latency_ms" in limits and (note := busy_note()):
        log.warning("%s", note)
    all_of_them, refused = _candidates(asked)
    for each in all_of_them:
        over = [cost for cost, most in limits.items() if each.costs.get(cost, 0.0) > most]
        each.why = TOO_MUCH[over[0]] if over else ""

    def is_trained(each: Candidate) -> bool:
        try:
            for check in checks:
                check(each.shape)
        except UserError as error:
            each.why, refused[each.family] = UNTRAINED, str(error)
        return not each.why

    def is_fast(several: list[Candidate]) -> None:
        if "latency_ms" in limits and several:
            log.info("Measuring %s ...", ", ".join(each.shape.text for each in several))
            for each, ms in zip(several, measure(several, runtime, latency), strict=True):
                each.costs["latency_ms"] = ms
                each.why = TOO_MUCH["latency_ms"] if ms > limits["latency_ms"] else ""

    fitting = [each for each in all_of_them if not each.why]
    best = search(fitting, is_trained, is_fast, bisects="latency_ms" in limits)
    if best is None:
        raise UserError(_nothing(asked.name, limits, all_of_them, refused))
    best.why = "chosen"
    told = ", ".join(
        f"{scale * best.costs[cost]:.3g} {words}"
        for cost, (words, scale) in WORDS.items()
        if cost in best.costs
    )
    measured = f" ({how}, on {describe_machine()})" if "latency_ms" in limits else ""
    tell(
        f"student: {best.shape.text}, the most capable shape that is {asked.name}: {told}{measured}"
    )
    rows = [each.row() for each in _shown(all_of_them)]
    columns = [words for words, _ in WORDS.values() if any(words in row for row in rows)]
    log.info("%s", table(rows, ["shape", *columns, ""], WIDTH))
    for family, why in refused.items():
        log.info("%s, some or all of them, can't be trained here: %s", family, why)
    return best.shape


def _candidates(asked: StudentOptions) -> tuple[list[Candidate], dict[str, str]]:
    """All shapes by family, the less capable first, counted; why families have none."""
    found: list[Candidate] = []
    refused: dict[str, str] = {}
    for family, names in FAMILIES.items():
        own: list[Candidate] = []
        for name in names:
            try:
                shape = StudentOptions(
                    name=name, img_size=asked.img_size, patch_size=asked.patch_size
                )
                own.append(Candidate(family, shape, counted(shape)))
            except UserError as error:
                refused[family] = str(error)
        found += sorted(own, key=attrgetter("power"))
    return found, refused


def counted(shape: StudentOptions) -> Budget:
    """The "params" and "macs" of a shape; raises UserError for one that can't be built."""
    outline = build_outline(shape)
    with torch.device("meta"):
        macs = count_macs(outline)
    return {"params": sum(each.numel() for each in outline.parameters()), "macs": macs}


def runtime_of(latency: LatencyOptions) -> RuntimeName:
    """What "auto" means here."""
    return runtime_shipped_with() if latency.runtime == "auto" else latency.runtime


def search(
    candidates: list[Candidate],
    is_trained: Callable[[Candidate], bool],
    judge: Callable[[list[Candidate]], None],
    *,
    bisects: bool,
) -> Candidate | None:
    """The most capable that can be trained and that ``judge`` leaves without a "why".

    The candidates of a family are sorted, and a larger one of it is not judged better: each is
    halved until nothing more capable than the best is left. Of all families one is judged together.
    """
    left: dict[str, list[Candidate]] = {}
    for each in candidates:
        left.setdefault(each.family, []).append(each)
    best: Candidate | None = None
    while any(left.values()):
        tried = []
        for own in left.values():
            while own:
                each = own[len(own) // 2 if bisects else -1]
                if is_trained(each):
                    tried.append(each)
                    break
                own.remove(each)
        judge(tried)
        for each in tried:
            own = left[each.family]
            place = own.index(each)
            left[each.family] = own[:place] if each.why else own[place + 1 :]
            if not each.why and (best is None or each.power > best.power):
                best = each
        for family, own in left.items():
            left[family] = [each for each in own if best is None or each.power > best.power]
    return best


def measure(
    candidates: list[Candidate], runtime: RuntimeName, latency: LatencyOptions
) -> list[float]:
    """Milliseconds of each, medians of turns with each other."""
    with threads(latency.threads):
        passes = [
            open_passes(build_student(each.shape, seed=0).eval(), runtime, latency.threads)
            for each in candidates
        ]
        works = [of_batch(latency.batch_size) for of_batch in passes]
        rounds = [interleaved(works, latency.num_turns) for _ in range(ROUNDS)]
    return [1e3 * min(each) for each in zip(*rounds, strict=True)]


def _shown(candidates: list[Candidate]) -> list[Candidate]:
    """Of each family the most capable that fits, and the first that does not."""
    shown: list[Candidate] = []
    timed = any("latency_ms" in each.costs for each in candidates)
    for family in FAMILIES:
        own = [each for each in candidates if each.family == family]
        fits = [each for each in own if each.why in ("", "chosen")]
        shown += [each for each in fits if not timed or "latency_ms" in each.costs][-1:]
        shown += [each for each in own if each not in fits][:1]
    return sorted(shown, key=attrgetter("power"))


def _nothing(
    asked: str, limits: Budget, candidates: list[Candidate], refused: dict[str, str]
) -> str:
    """What the smallest costs, or why what would be small enough can't be trained."""
    if not candidates or any(each.why == UNTRAINED for each in candidates):
        why = " ".join(dict.fromkeys(refused.values()))
        return f"No student that is {asked} can be trained here. {why}"
    for cost, most in limits.items():
        known = [each for each in candidates if cost in each.costs]
        least = min(known, key=lambda each: each.costs[cost], default=None)
        if least is not None and least.costs[cost] > most:
            words, scale = WORDS[cost]
            return (
                f"No student is {asked}: the smallest there is, {least.shape.text}, has "
                f"{scale * least.costs[cost]:.3g} {words}; allow more, or make images smaller "
                "(--student.img-size)."
            )
    return f"No student is {asked}: each limit has some, all together have none; allow more."
