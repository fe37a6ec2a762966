"""What ``precision auto`` stands for: decided once, told, saved in the run, and kept by it.

A study (compare, two-stage, search, a chain) decides once for all of its runs, so that they are
alike. ``auto`` stands in no resolved config, and so in no fingerprint, manifest or comparison.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

import torch

from limbeck.config import to_plain
from limbeck.data.loader import workers_for
from limbeck.engine.checkpoint import saved_config
from limbeck.engine.distributed import Ranks, gather, on_main_rank
from limbeck.engine.machine import DTYPES, agreed, choose, slowness
from limbeck.engine.options import TrainOptions
from limbeck.models.options import TeacherOptions

log = logging.getLogger("limbeck")

AUTO = "auto"
BEFORE_AUTO = "bf16"
"""The default of earlier versions, which had no ``auto``; a two-stage's folder does not say it."""

Config = TypeVar("Config")


def settle(
    config: Config,
    ranks: Ranks,
    recall: Callable[[], str | None] | None = None,
    tell: Callable[[str], None] = log.info,
) -> Config:
    """The config with what each ``auto`` in it stands for: on all ranks, and in a study, the same.

    A run that goes on keeps its own: ``recall`` tells in what it was begun, and the config in
    ``config.out`` where it is not given. Rank 0 tells the outcome, and warns of what is slow here.
    """
    wanted = [name for name, value in _precisions(config) if value == AUTO]

    def saved() -> dict[str, str]:
        if recall is None:
            there = saved_config(config.out, to_plain(config))  # type: ignore[attr-defined]
            default = there.get("precision") or BEFORE_AUTO
            return {name: there.get(name, default) for name in wanted} if there else {}
        value = recall()
        return dict.fromkeys(wanted, value) if value else {}

    found = on_main_rank(saved) if wanted else {}
    # A word that is none is of a damaged run, which is told where the run is taken up.
    found = {name: value for name, value in found.items() if value in tuple(DTYPES)}
    why = "in which what is there was begun"
    if set(wanted) - set(found):
        choice = agreed(gather(choose(ranks.device)))
        found = dict.fromkeys(wanted, choice.precision) | found
        why = f"because {choice.why}"
    settled = _replaced(config, found)
    if ranks.is_main:
        if wanted:
            values = " and ".join(dict.fromkeys(found.values()))
            tell(f"precision: {values}, {why}; {work_force(config, ranks)}")
        by_value: dict[str, list[str]] = {}
        for name, value in _precisions(settled):
            by_value.setdefault(value, []).append(name)
        for value, names in by_value.items():
            if reason := slowness(ranks.device, value):
                _warn(f"{value} ({', '.join(names)}) is slow here: {reason}")
    return settled


def filled(config: Config, precision: str) -> Config:
    """The config of a run of a study that has decided: its precision for each ``auto``."""
    wanted = [name for name, value in _precisions(config) if value == AUTO]
    return _replaced(config, dict.fromkeys(wanted, precision))


def stands_for(asked: Any, settled: Any) -> str | None:
    """What ``auto`` stands for in a settled config; None where nothing was asked so."""
    pairs = zip(_precisions(asked), _precisions(settled), strict=True)
    return next((value for (_, word), (_, value) in pairs if word == AUTO), None)


def settled_plain(config: Any) -> dict[str, Any]:
    """A settled config as plain data; of a teacher that is none no precision is left to tell, and
    of a student that was named no budget."""
    plain = to_plain(config)
    student = plain.get("student")
    if isinstance(student, dict) and student.get("budget", "") is None:
        del student["budget"]
    if plain.get("teacher", {}).get("precision") == AUTO:
        del plain["teacher"]["precision"]
    return plain


def work_force(config: Any, ranks: Ranks) -> str:
    """Threads of the arithmetic and processes of the loader, in words."""
    threads, workers = torch.get_num_threads(), workers_for(config.data, ranks.world_size)
    return (
        f"{threads} thread{'' if threads == 1 else 's'}, "
        f"{workers} loader process{'' if workers == 1 else 'es'}"
    )


def _precisions(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and value of each precision that a config states for something that there is."""
    for field in fields(config):
        value = getattr(config, field.name)
        # A two-stage's is also that of the classifier that helps.
        has_other = getattr(config, "task_teacher", None) is not None
        if isinstance(value, TeacherOptions) and value.source is None and not has_other:
            continue
        if isinstance(value, TeacherOptions | TrainOptions):
            yield f"{prefix}{field.name}.precision", value.precision
        elif is_dataclass(value):
            yield from _precisions(value, f"{prefix}{field.name}.")


def _replaced(config: Config, values: dict[str, str], prefix: str = "") -> Config:
    changes: dict[str, Any] = {}
    for field in fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if f"{name}.precision" in values:
            changes[field.name] = replace(value, precision=values[f"{name}.precision"])
        elif is_dataclass(value) and any(each.startswith(f"{name}.") for each in values):
            changes[field.name] = _replaced(value, values, f"{name}.")
    return replace(config, **changes) if changes else config  # type: ignore[type-var]


@cache  # a study's runs would each say it again
def _warn(text: str) -> None:
    log.warning("%s. Without it a new run takes what is fast.", text)
