"""What stage two is for a task: a record of functions, as a plan is of a training.

They import torch when they are called, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from limbeck.documents import fit
from limbeck.models.options import TeacherOptions
from limbeck.recipes.study.engine import remembered
from limbeck.recipes.study.results import Column, Result
from limbeck.recipes.study.runs import values_of, without_layer_decay
from limbeck.recipes.study.stages import Way, folder_of

if TYPE_CHECKING:
    import torch

    from limbeck.data.skipped import SkippedLog
    from limbeck.evaluation.scores import Verdict
    from limbeck.models.encoder import Encoder
    from limbeck.recipes.run.images import Images
    from limbeck.recipes.run.plan import Plan


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

    A ``run`` is the options of a training; ``check``, ``plan`` and ``train`` are its verb's.
    ``measure(bench, network, source, file)`` is what a network is worth, from a file where the same
    was measured before; ``compare(both, others, claims)`` judges the scores ``score`` of runs.
    """

    network: str
    images: str
    has_maps: bool
    """Whether its networks answer with maps."""
    run: type[Any]
    untaught: type
    """The options of config.specific that need no teacher."""
    taught: tuple[str, ...]
    """Names of those that do."""
    of_arm: Callable[[Any, Way], dict[str, Any]]
    """What config.specific says otherwise to the run of an arm."""
    of_teacher: Callable[[Any], dict[str, Any]]
    """What a config says beside config.tune_teacher to the run that makes the teacher."""
    check: Callable[[Any], None]
    plan: Callable[..., Plan]
    train: Callable[[Any], Path]
    open: Callable[[Any], Images]
    score: str
    columns: tuple[Column, ...]
    """Of the table, that of ``score`` first."""
    measure: Callable[[Bench, Encoder, str, Path], Result]
    compare: Callable[..., Verdict]
    notes: Callable[[Bench, Encoder], list[str]]
    """What the reader of the scores must know; of an untrained student."""
    tables: Callable[[Mapping[str, Sequence[Result]]], list[str]]
    """Markdown tables of the runs of arms and teacher, beside the first."""
    more: Callable[[Mapping[str, Sequence[Result]]], dict[str, Any]] = lambda runs: {}
    """JSON-ready data of them, beside scores and costs."""
    unread: tuple[str, ...] = ()
    """Options of config.teacher that stage two does not read."""

    def teacher(self, config: Any) -> Any:
        """The run that makes the teacher of stage two out of stage one's."""
        teacher = config.teacher
        own = {"student": teacher.source, "num_heads": teacher.num_heads}
        own |= self.of_teacher(config) | _shared(config, config.out / "teacher", 0)
        return self.run(**values_of(config.tune_teacher) | own)

    def arm(
        self, config: Any, arm: Way, seed: int, task_teacher: str | None, num_heads: int | None
    ) -> Any:
        """The run at the end of an arm. ``task_teacher``: the network that helps.

        ``num_heads``: the student's own head count, where stage one may have changed it.
        """
        specific, start = config.specific, "stage_one" if arm.is_generic else "start"
        is_fresh = not arm.is_generic and config.student.weights is None
        out = folder_of(config.out, seed, arm.name)
        own = (
            self.of_arm(specific, arm)
            | _shared(config, out, seed)
            | {
                "student": str(folder_of(config.out, seed, start)),
                "num_heads": num_heads,
                "optim": without_layer_decay(specific.optim) if is_fresh else specific.optim,
            }
        )
        if not arm.is_taught:
            return self.run(**values_of(specific, self.untaught) | own)
        own["teacher"] = TeacherOptions(source=task_teacher, precision=config.teacher.precision)
        return self.run(**values_of(specific) | own)


def later(address: str) -> Callable[..., Any]:
    """The function "module:name", which is imported when it is called."""

    def call(*given: Any) -> Any:
        module, _, name = address.partition(":")
        return getattr(import_module(module), name)(*given)

    return call


def _shared(config: Any, out: Path, seed: int) -> dict[str, Any]:
    names = ("overwrite", "data", "evaluation")
    return {"out": out, "seed": seed} | {name: getattr(config, name) for name in names}


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
