"""One candidate of a search: trained from its start, scored on held-out images, written down."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.config import read_json
from limbeck.data.loader import eval_batches
from limbeck.data.skipped import SkippedLog
from limbeck.engine.checkpoint import write_json
from limbeck.evaluation.predictions import Predictions, predict
from limbeck.models.build import build_student
from limbeck.models.finished import is_finished_student, load_student, save_student
from limbeck.models.inherit import inherit
from limbeck.models.options import StudentOptions
from limbeck.recipes.distill import distill
from limbeck.recipes.meter import Meter
from limbeck.recipes.networks import load_teacher
from limbeck.recipes.rounds import Candidate, caught
from limbeck.recipes.search import SearchConfig, training

if TYPE_CHECKING:
    import torch

    from limbeck.models.encoder import Encoder
    from limbeck.recipes.images import Images

log = logging.getLogger("limbeck")

FROZEN_SCORES = ("linear_top1", "neighbours")
"""What a run's probes tell of a student without a classifier, labelled or not."""
COSTS = ("params", "macs", "latency_ms")


class Trials:
    """Trains and scores candidates; what a folder has of them already is taken from there."""

    def __init__(
        self, config: SearchConfig, images: Images, meter: Meter, device: torch.device
    ) -> None:
        self.config, self.images, self.meter, self.device = config, images, meter, device
        self.skipped = SkippedLog(None, images.num_images, config.data.max_bad_ratio)
        self.file = config.out / "candidates.json"
        self.records: dict[str, dict[str, Any]] = read_json(self.file) if self.file.exists() else {}
        self.score_name = ""
        self._teacher_says: Predictions | None = None

    def train_and_score(self, candidate: Candidate, parent: Candidate | None) -> None:
        """See ``rounds.TrainAndScore``."""
        candidate.costs = {name: self.meter.cost(candidate.shape, name) for name in COSTS}
        record = self.records.setdefault(
            candidate.name, {"shape": candidate.shape.text, "scores": {}, "seconds": 0.0}
        )
        caught(partial(self._train_all, candidate, parent, record), candidate)
        record |= candidate.plain() | {"scores": record["scores"]}
        write_json(self.file, self.records)

    def folder(self, candidate: Candidate, index: int) -> Path:
        """The run of a candidate's training of that index (0: the first seed)."""
        return self.config.out / f"{candidate.name}_{self.config.seed + index}"

    def _train_all(
        self, candidate: Candidate, parent: Candidate | None, record: dict[str, Any]
    ) -> None:
        for index in range(self.config.seeds):
            if record.get("failure") is None and str(index) not in record["scores"]:
                log.info("%s, seed %d: %s", candidate.name, index, candidate.shape.text)
                with self._timed(record):
                    self._train(candidate, parent, index)
                    name, score = self._score(self.folder(candidate, index))
                    record["score_name"] = name
                    record["scores"][str(index)] = score
        candidate.seconds, candidate.failure = record["seconds"], record.get("failure")
        candidate.scores = [] if candidate.failure else list(record["scores"].values())
        self.score_name = record.get("score_name", self.score_name)

    @contextmanager
    def _timed(self, record: dict[str, Any]) -> Iterator[None]:
        """Write the record with the time that was spent, however it ends."""
        started = time.monotonic()
        try:
            yield
        finally:
            record["seconds"] += time.monotonic() - started
            write_json(self.file, self.records)

    def _train(self, candidate: Candidate, parent: Candidate | None, index: int) -> None:
        student = candidate.shape
        if self.config.inherit and parent is not None:
            student = StudentOptions(weights=str(self._cut(candidate, parent, index)))
        distill(
            training(
                self.config,
                student=student,
                out=self.folder(candidate, index),
                seed=self.config.seed + index,
            )
        )

    def _cut(self, candidate: Candidate, parent: Candidate, index: int) -> Path:
        """The folder of a candidate's start: its parent's weights, cut to its shape."""
        folder = self.config.out / "starts" / f"{candidate.name}_{self.config.seed + index}"
        if not is_finished_student(folder):
            source = load_student(self.folder(parent, index))
            child = build_student(candidate.shape, seed=self.config.seed + index)
            fresh = inherit(child, source)
            save_student(child, folder, {"cut_from": parent.name, "fresh": fresh})
        return folder

    # --- Scores ----------------------------------------------------------------------------------

    def _score(self, folder: Path) -> tuple[str, float]:
        """The name of a finished run's score, and the score (0..1)."""
        student = load_student(folder).to(self.device)
        if not student.facts.num_classes:
            scores = read_json(folder / "student.json")["scores"]
            name = next(name for name in FROZEN_SCORES if name in scores)
            return name, scores[name]
        said = predict(student, self._held_out(student))
        if self._labels_are_the_teachers(student.facts.num_classes):
            return "top1", said.top1()
        return "agreement", said.agreement(self._ask_teacher())

    def _labels_are_the_teachers(self, num_classes: int) -> bool:
        return self.images.is_labelled and len(self.images.train.classes) == num_classes

    def _ask_teacher(self) -> Predictions:
        """What a live teacher takes the held-out images for; asked once."""
        if self._teacher_says is None:
            teacher = load_teacher(self.config.teacher, None, self.device)
            assert teacher is not None
            batches = self._held_out(teacher.encoder)
            self._teacher_says = predict(teacher.encoder, batches, teacher.precision)
        return self._teacher_says

    def _held_out(self, encoder: Encoder) -> Iterator[Any]:
        return eval_batches(
            self.images.holdout,
            data=replace(self.config.data),
            img_size=encoder.facts.img_size[0],
            crop_ratio=self.config.probes.crop_ratio,
            batch_size=self.config.probes.batch_size,
            device=self.device,
            skipped=self.skipped,
        )
