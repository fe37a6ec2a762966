"""The rounds of progressive contraction: smaller shapes within limits, the best is the next.

TinyViT, arXiv 2207.10666. The paper gives the factors and that a candidate must be within limits on
parameters and throughput. Ours are: limits that shrink from the seed's cost to the target by the
same ratio in every round; a candidate for each factor, which is contracted until it is within them;
and, where no number of its steps is enough, one step of it and the rest by the width of all stages.
So all candidates of a round cost about the same, and each tells where it is best to save.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from limbeck.errors import RunError, UserError
from limbeck.models.contraction import WIDTH, contract, factors_of
from limbeck.models.options import StudentOptions

log = logging.getLogger("limbeck")

SEED = "seed"
Limits = Mapping[str, float]
"""Largest values by name of cost: "params", "macs", "latency_ms"; in this order they are looked at,
the dear one last."""
MeasureCost = Callable[[StudentOptions, str], float]
"""The cost of a shape by name; measured once, and then known."""


@dataclass
class Candidate:
    """A shape that was, or is to be, trained and scored.

    ``score`` in 0..1 is the mean of ``scores``, one for each seed of training. ``failure``: why
    there is none. ``round`` 0 is the seed's. ``parent`` is the name of the one that it was
    contracted from. ``seconds`` of training and scoring.
    """

    name: str
    shape: StudentOptions
    round: int
    factor: str
    parent: str | None = None
    costs: dict[str, float] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)
    seconds: float = 0.0
    failure: str | None = None

    @property
    def score(self) -> float:
        """The mean over the seeds."""
        return fmean(self.scores)

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""
        own = asdict(self) | {"shape": self.shape.text}
        return own | {"score": self.score if self.scores else None}


TrainAndScore = Callable[[Sequence[Candidate], "Candidate | None"], None]
"""Fill in candidates' scores or failures, seconds and costs; the second is their parent, trained
already."""


@dataclass
class Outcome:
    """All that were trained, in order; the ``winner``, the best of those within the ``limits``; and
    the ``baseline``, the seed thinned by width alone to them, None where that can't be.
    """

    candidates: list[Candidate]
    winner: Candidate
    baseline: Candidate | None
    limits: Limits


def run_rounds(
    seed: StudentOptions,
    limits: Limits,
    num_rounds: int,
    measure: MeasureCost,
    train_and_score: TrainAndScore,
    *,
    factors: Sequence[str] = (),
    inherits: bool = False,
) -> Outcome:
    """Contract ``seed``, a whole shape, until it is within ``limits``.

    ``factors``: all of its family if not given. Deterministic: what the callables know already is
    asked of them again and in the same order. With ``inherits`` the baseline, too, goes through all
    rounds, since what it starts from counts. Raises UserError for limits that nothing meets, before
    anything is trained where that is known.
    """
    factors = factors or factors_of(seed)
    # Narrow heads let a TinyViT get thinner, and fewer heads keep a plain ViT from it.
    smallest = [_smallest(seed, order) for order in (factors, factors[::-1])]
    if not any(is_within(shape, limits, measure) for shape in smallest):
        raise _nothing_within(smallest, limits, measure, "")
    if is_within(seed, limits, measure):
        raise UserError("The seed is within the limits already; lower them, or take a larger seed.")
    found: dict[str, Candidate] = {}

    def train(candidates: Sequence[Candidate], parent: Candidate | None) -> list[Candidate]:
        # The same shape from the same start is trained once.
        start = parent.name if parent and inherits else None
        keys = [f"{each.shape.text} from {start}" for each in candidates]
        fresh = {k: each for k, each in zip(keys, candidates, strict=True) if k not in found}
        train_and_score(list(fresh.values()), parent)
        found.update(fresh)
        return [found[key] for key in keys]

    first = current = train([Candidate(SEED, seed, 0, SEED)], None)[0]
    if not first.scores:
        raise RunError(f"The seed can't be trained: {first.failure}")
    thinner = first
    ranked = [first]
    for number in range(1, num_rounds + 1):
        within = limits_of_round(seed, limits, number / num_rounds, measure)
        told = ", ".join(f"{name} {value:.4g}" for name, value in within.items())
        log.info("Round %d of %d: %s or less.", number, num_rounds, told)
        if inherits or number == num_rounds:
            thinner = _train_baseline(thinner, seed, number, within, measure, train)
        if is_within(current.shape, within, measure):
            continue  # an earlier step was longer than it had to be
        for current in ranked:  # where the best can't be made smaller, the next best is
            shapes = dict(neighbours(current.shape, factors, within, measure))
            if shapes:
                break
        else:
            raise _nothing_within(_ends(ranked, factors), within, measure, f"Round {number}: ")
        asked = [
            Candidate(f"round{number}_{factor}", shape, number, factor, current.name)
            for factor, shape in shapes.items()
        ]
        trained = train(asked, current)
        ranked = sorted((each for each in trained if each.scores), key=_by_merit, reverse=True)
        if not ranked:
            raise RunError(
                f"Round {number}: no candidate could be trained; {trained[0].name}: "
                f"{trained[0].failure}"
            )
        current = ranked[0]
        log.info("Round %d: %s, %.1f %%.", number, current.shape.text, 100 * current.score)
    whole = [each for each in found.values() if each.scores]
    fitting = [each for each in whole if is_within(each.shape, limits, measure)]
    winner = max(fitting, key=_by_merit)
    baseline = thinner if thinner in fitting else None
    return Outcome(list(found.values()), winner, baseline, limits)


def limits_of_round(
    seed: StudentOptions, limits: Limits, part: float, measure: MeasureCost
) -> dict[str, float]:
    """The limits when a ``part`` (0..1) of the way is done: seed^(1 - part) * target^part each.

    Where the seed is within a limit already, that limit holds from the start.
    """
    return {
        name: measure(seed, name) ** (1 - part) * limit**part
        if measure(seed, name) > limit
        else limit
        for name, limit in limits.items()
    }


def is_within(shape: StudentOptions, limits: Limits, measure: MeasureCost) -> bool:
    """Whether all limits hold; the dear costs are measured only where the others do."""
    return all(measure(shape, name) <= limit for name, limit in limits.items())


def neighbours(
    shape: StudentOptions, factors: Sequence[str], limits: Limits, measure: MeasureCost
) -> Iterator[tuple[str, StudentOptions]]:
    """The shape made smaller by each factor until it is within the limits, each once; by name.

    "FACTOR+width" is one step of the factor and then the width of all stages.
    """
    seen: set[str] = set()
    for factor in factors:
        for name, smaller in _ways(shape, factor):
            fitting = next((each for each in smaller if is_within(each, limits, measure)), None)
            if fitting is not None:
                if fitting.text not in seen:
                    yield name, fitting
                seen.add(fitting.text)
                break


def _ways(shape: StudentOptions, factor: str) -> Iterator[tuple[str, Iterator[StudentOptions]]]:
    yield factor, steps_of(shape, factor)
    once = contract(shape, factor)
    if once is not None and factor != WIDTH:
        yield f"{factor}+{WIDTH}", steps_of(once, WIDTH)


def steps_of(shape: StudentOptions, factor: str) -> Iterator[StudentOptions]:
    """The shape with one factor one step smaller, two, and so on."""
    steps = 1
    while (smaller := contract(shape, factor, steps)) is not None:
        yield smaller
        steps += 1


def _by_merit(candidate: Candidate) -> tuple[float, float]:
    """Of equal scores that of the fewer MACs is better: they are the same wherever it runs."""
    return candidate.score, -candidate.costs["macs"]


def _train_baseline(
    parent: Candidate,
    seed: StudentOptions,
    number: int,
    within: Limits,
    measure: MeasureCost,
    train: Callable[[Sequence[Candidate], Candidate | None], list[Candidate]],
) -> Candidate:
    """The seed by width alone, as wide as the limits let it be; the parent where nothing is."""
    if is_within(parent.shape, within, measure):
        return parent
    thinner = (each for each in steps_of(seed, WIDTH) if is_within(each, within, measure))
    shape = next(thinner, None)
    if shape is None:
        log.warning("Width alone does not bring the seed within the limits: no baseline.")
        return parent
    thin = Candidate(f"round{number}_baseline", shape, number, WIDTH, parent.name)
    trained = train([thin], parent)[0]
    return trained if trained.scores else parent


def _smallest(shape: StudentOptions, factors: Sequence[str]) -> StudentOptions:
    for factor in factors:
        shape = [shape, *steps_of(shape, factor)][-1]
    return shape


def _ends(ranked: Sequence[Candidate], factors: Sequence[str]) -> list[StudentOptions]:
    """The candidates' shapes, and the smallest that each factor makes of them."""
    return [each.shape for each in ranked] + [
        end for each in ranked for factor in factors for _, way in _ways(each.shape, factor)
        for end in list(way)[-1:]
    ]  # fmt: skip


def _nothing_within(
    shapes: Sequence[StudentOptions], limits: Limits, measure: MeasureCost, where: str
) -> UserError:
    """The error for limits that none of the shapes meets, with the nearest and what it exceeds."""

    def excess(each: StudentOptions) -> float:
        return max(measure(each, name) / limit for name, limit in limits.items())

    nearest = min(shapes, key=excess)
    name = max(limits, key=lambda each: measure(nearest, each) / limits[each])
    return UserError(
        f"{where}nothing is within the limit of {limits[name]:.4g} on {name}: the nearest shape, "
        f"{nearest.text}, has {measure(nearest, name):.4g}. Raise --limits.{name.partition('_')[0]}"
        ", or start from another seed."
    )
