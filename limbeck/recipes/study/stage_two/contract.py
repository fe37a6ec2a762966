"""What stage two is for a task: a record of functions, as a plan is of a training.

They import torch when they are called, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from limbeck.documents import fit
from limbeck.recipes.run.options import TrainingOptions
from limbeck.recipes.study.engine import remembered
from limbeck.recipes.study.results import Column, Result, Row

if TYPE_CHECKING:
    import torch

    from limbeck.data.skipped import SkippedLog
    from limbeck.evaluation.scores import Verdict
    from limbeck.models.encoder import Encoder
    from limbeck.recipes.run.images import Images
    from limbeck.recipes.run.train import Plan


@dataclass(frozen=True)
class Bench:
    """What networks are measured on; ``notes`` are for people, and grow."""

    config: Any
    images: Images
    device: torch.device
    skipped: SkippedLog
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class StageTwo:
    """One task: ``network`` is what it makes, in a word, ``images`` what that is tried on.

    A run is the options of a training: ``teacher(config)`` fine-tunes the teacher,
    ``arm(config, arm, seed, task_teacher, num_heads)`` ends an arm; ``check``, ``plan`` and
    ``train`` are the verb's. ``measure(bench, network, source, file)`` is what a network is worth,
    from a file where the same was measured before; ``compare(both, others, claims)`` judges the
    scores ``score`` of runs.
    """

    network: str
    images: str
    has_maps: bool
    """Whether its networks answer with maps."""
    taught: tuple[str, ...]
    """Options of config.specific that need a teacher."""
    open: Callable[[Any], Images]
    teacher: Callable[[Any], TrainingOptions]
    arm: Callable[..., TrainingOptions]
    check: Callable[[Any], None]
    plan: Callable[..., Plan]
    train: Callable[[Any], Path]
    score: str
    columns: tuple[Column, ...]
    """Of the table, that of ``score`` first."""
    measure: Callable[[Bench, Encoder, str, Path], Result]
    compare: Callable[..., Verdict]
    notes: Callable[[Bench, Encoder], list[str]]
    """What the reader of the scores must know; of an untrained student."""
    row: Callable[[Sequence[Result]], Row] = lambda runs: {}
    """What the table tells of the runs of an arm beside scores and costs, by name."""
    more: Callable[[Mapping[str, Sequence[Result]]], dict[str, Any]] = lambda runs: {}
    """Data of all runs of arms and teacher beside scores and costs, JSON-ready."""
    tables: Callable[[Mapping[str, Sequence[Result]]], list[str]] = lambda runs: []
    """Markdown tables beside the first."""


class _Known(TypedDict):
    scores: Any
    cost: dict[str, float]


def recall(
    file: Path, bench: Bench, network: Encoder, source: str, asked: dict[str, Any],
    answer: Callable[[], Any], kind: Any, speed_batch: int,
) -> tuple[Any, dict[str, float]]:  # fmt: skip
    """What a network ``answer``s, as ``kind``, and its costs; from the file where the same was
    asked of the same network before."""
    from limbeck.evaluation.cost import costs_of

    config = bench.config
    asked = {
        "weights": network.facts.identity["weights"] or source,
        "data": bench.images.fingerprint,
        "measure_speed": config.measure_speed,
    } | asked

    def measure() -> dict[str, Any]:
        network.to(bench.device)
        speed = speed_batch if config.measure_speed else None
        return {"scores": answer(), "cost": costs_of(network, speed)}

    known: _Known = fit(remembered(file, asked, measure), _Known, str(file))
    return fit(known["scores"], kind, str(file)), dict(known["cost"])
