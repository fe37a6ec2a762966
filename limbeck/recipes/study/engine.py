"""The engine of studies: many runs, finished or gone on with, and what each is worth.

An arm is a name and, for a seed, a chain of ordinary runs in folders of their own. A study chooses
which trials, an arm with a seed, are finished and in what order; how and where their runs are done
is a runner's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.documents import Plain, as_read, write_json
from limbeck.errors import UserError, explain
from limbeck.recipes.run.costs import measured, read_measured
from limbeck.recipes.study.results import ByArm, Result

if TYPE_CHECKING:
    import torch

log = logging.getLogger("limbeck")


@dataclass(frozen=True)
class Run:
    """An ordinary run: ``work`` finishes it, or goes on with it, in the folder ``out``.

    ``costs``: the names by which its "seconds", its "memory_mib" on a ``device`` and the
    "images_per_second" of its steps are kept; without any nothing is measured. ``measure`` tells
    what it is worth once it is finished.
    """

    work: Callable[[], Any]
    out: Path
    costs: Mapping[str, str] = field(default_factory=dict)
    measure: Callable[[], Result] | None = None
    device: torch.device | None = None

    def finish(self) -> dict[str, float]:
        """Do what is left of it; what it has cost over all attempts."""
        if not self.costs:
            self.work()
            return {}
        spent = measured(self.out, self.device, self.work)
        return {self.costs[name]: value for name, value in spent.items() if name in self.costs}


@dataclass(frozen=True)
class Arm:
    """One thing that is studied: ``runs`` are made for a seed, each needing those before it.

    Arms may share a run, by its folder. ``words`` say what it is.
    """

    name: str
    runs: Callable[[int], Iterable[Run]]
    words: str = ""


Trial = Generator[Run, dict[str, float], None]
"""The runs of a trial: each is to be finished; then what it has cost is sent, or its error thrown,
and the next one comes."""
Runner = Callable[[Iterable[Trial]], None]
"""Brings chains to their ends. One that does several at once, in processes or on other machines,
takes the next chain when it has room for it, since which one that is may hang on what was found so
far, and has no two runs of a folder at once."""


def in_turn(
    chains: Iterable[Trial], finish: Callable[[Run], dict[str, float]] = Run.finish
) -> None:
    """The runner of one process, which finishes one run after the other by ``finish``."""
    for chain in chains:
        with closing(chain), suppress(StopIteration):  # closed at once by a Ctrl-C, too
            run = next(chain)
            while True:
                try:
                    cost = finish(run)
                except Exception as error:
                    run = chain.throw(error)
                else:
                    run = chain.send(cost)


@dataclass(frozen=True)
class Engine:
    """Finishes trials; ``results`` by arm and seed are as far as they have come.

    What an arm meets of the kinds of error that it ``catches`` ends this arm alone, and is told in
    ``failures``; all else ends the study.
    """

    catches: tuple[type[Exception], ...] = ()
    runner: Runner = in_turn
    results: ByArm = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def finish_all(
        self, arms: Sequence[Arm], num_seeds: int, after: Callable[[], None] = lambda: None
    ) -> None:
        """All arms with seed 0, then with seed 1 and so on; ``after`` each trial something."""

        def trials() -> Iterator[tuple[Arm, int]]:
            for seed in range(num_seeds):
                for arm in arms:
                    if arm.name not in self.failures:
                        words = f": {arm.words}." if arm.words else ""
                        log.info("Arm %s, seed %d of %d%s", arm.name, seed, num_seeds, words)
                        yield arm, seed

        self.finish(trials(), after)

    def finish(
        self, trials: Iterable[tuple[Arm, int]], after: Callable[[], None] = lambda: None
    ) -> None:
        """Finish arms with seeds, which may be chosen by what those before them have given."""
        self.runner(self._chain(arm, seed, after) for arm, seed in trials)

    def _chain(self, arm: Arm, seed: int, after: Callable[[], None]) -> Trial:
        result = self.results.setdefault(arm.name, {}).setdefault(seed, Result())
        with self.attempt(arm.name):
            for run in arm.runs(seed):
                cost = yield run
                result.cost |= cost
                if run.measure is not None:
                    result.add(run.measure())
        after()

    @contextmanager
    def attempt(self, arm: str, told: str = "has failed") -> Iterator[None]:
        """What is raised in the block ends the arm alone, where it is of the kinds caught."""
        from limbeck.engine.loop import Interrupted

        try:
            yield
        except Interrupted:
            raise
        except self.catches as error:  # an arm may be anybody's class, and memory may end
            log.debug("The arm's traceback:", exc_info=True)
            self.failures[arm] = str(error) if isinstance(error, UserError) else explain(error)
            log.warning("Arm %s %s: %s", arm, told, self.failures[arm])


def remembered(
    file: Path, asked: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What ``measure`` finds, plain data: from the file where the same was asked before."""
    asked = as_read(asked)
    known = read_measured(file, Plain)
    if known.get("asked") != asked:
        known = {"asked": asked, **measure()}
        write_json(file, known)
    return known
