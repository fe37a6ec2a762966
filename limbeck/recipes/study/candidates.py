"""One candidate of a search: trained from its start, scored on held-out images, written down."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NotRequired

import pydantic
from typing_extensions import TypedDict

from limbeck.documents import write_json
from limbeck.errors import NotFiniteError
from limbeck.models.build import build_student
from limbeck.models.finished import load_student, save_student
from limbeck.models.inherit import inherit
from limbeck.models.options import StudentOptions
from limbeck.recipes.run.costs import Amount, read_measured
from limbeck.recipes.study.engine import Arm, Engine, Run
from limbeck.recipes.study.meter import Meter
from limbeck.recipes.study.options import SearchConfig, training
from limbeck.recipes.study.results import Result
from limbeck.recipes.study.rounds import Candidate
from limbeck.recipes.train.distill import distill

log = logging.getLogger("limbeck")

COSTS = ("params", "macs", "latency_ms")


@pydantic.with_config(extra="allow")  # the rest is for people
class _Record(TypedDict):
    shape: str
    scores: dict[str, float]
    seconds: Amount
    failure: NotRequired[str | None]


class Candidates:
    """Trains and scores candidates; what a folder has of them already is taken from there."""

    def __init__(self, config: SearchConfig, meter: Meter, score: Callable[[Path], float]) -> None:
        self.config, self.meter, self.score = config, meter, score
        self.file = config.out / "candidates.json"
        self.records: dict[str, dict[str, Any]] = read_measured(self.file, dict[str, _Record])
        self.engine = Engine(catches=(NotFiniteError,))

    def train_and_score(self, candidates: Sequence[Candidate], parent: Candidate | None) -> None:
        """See ``rounds.TrainAndScore``."""
        begun: list[Candidate] = []

        def trials() -> Iterator[tuple[Arm, int]]:
            for each in candidates:
                each.costs = {name: self.meter.cost(each.shape, name) for name in COSTS}
                fresh = {"shape": each.shape.text, "scores": {}, "seconds": 0.0}
                record = self.records.setdefault(each.name, fresh)
                begun.append(each)
                keep()
                arm = Arm(each.name, partial(self._runs, each, parent))
                for index in range(self.config.seeds):
                    if each.failure is None and str(index) not in record["scores"]:
                        log.info("%s, seed %d: %s", each.name, index, each.shape.text)
                        yield arm, index

        def keep() -> None:
            for each in begun:
                record = self.records[each.name]
                failure = record.get("failure") or self.engine.failures.get(each.name)
                each.seconds, each.failure = record["seconds"], failure
                each.scores = [] if failure else list(record["scores"].values())
                record |= each.plain() | {"scores": record["scores"]}
            write_json(self.file, self.records)

        self.engine.finish(trials(), after=keep)

    def folder(self, candidate: Candidate, index: int) -> Path:
        """The run of a candidate's training of that index (0: the first seed)."""
        return self.config.out / f"{candidate.name}_{self.config.seed + index}"

    def _runs(self, candidate: Candidate, parent: Candidate | None, index: int) -> Iterator[Run]:
        record, out = self.records[candidate.name], self.folder(candidate, index)

        def measure() -> Result:
            record["scores"][str(index)] = self.score(out)
            return Result(record["scores"])

        with self._timed(record):
            student = candidate.shape
            if self.config.inherit and parent is not None:
                student = StudentOptions(weights=str(self._cut(candidate, parent, index)))
            own = training(self.config, student=student, out=out, seed=self.config.seed + index)
            yield Run(partial(distill, own), out, measure=measure)

    @contextmanager
    def _timed(self, record: dict[str, Any]) -> Iterator[None]:
        """Write the record with the time that was spent, however it ends."""
        started = time.monotonic()
        try:
            yield
        finally:
            record["seconds"] += time.monotonic() - started
            write_json(self.file, self.records)

    def _cut(self, candidate: Candidate, parent: Candidate, index: int) -> Path:
        """The folder of a candidate's start: its parent's weights, cut to its shape.

        Cut again each time, which gives the same: one that lies there may be a replaced search's.
        """
        folder = self.config.out / "starts" / f"{candidate.name}_{self.config.seed + index}"
        child = build_student(candidate.shape, seed=self.config.seed + index)
        fresh = inherit(child, load_student(self.folder(parent, index)))
        save_student(child, folder, {"cut_from": parent.name, "fresh": fresh})
        return folder
