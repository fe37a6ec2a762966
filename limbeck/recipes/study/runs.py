"""Ordinary runs as parts of a study: their configs, what they cost, and their rehearsal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.engine.options import OptimOptions
from limbeck.errors import UserError
from limbeck.methods import METHODS
from limbeck.recipes.run.options import TrainingOptions
from limbeck.recipes.study.engine import Run

if TYPE_CHECKING:
    from limbeck.engine.distributed import Ranks
    from limbeck.models.encoder import Encoder
    from limbeck.models.options import StudentOptions
    from limbeck.recipes.run.plan import Plan
    from limbeck.recipes.run.resolved import Identity

    Existing = tuple[Path, bool, Identity]
    """A run's folder, its leave to overwrite, and what it is known by."""


def values_of(section: Any, kind: type | None = None) -> dict[str, Any]:
    """The options of a section by name; of a ``kind`` that it is more than, those of the kind."""
    return {field.name: getattr(section, field.name) for field in fields(kind or section)}


def without_layer_decay(optim: OptimOptions) -> OptimOptions:
    """Layer decay spares what was learnt before; a fresh student has learnt nothing."""
    return replace(optim, layer_decay=1.0, layer_decay_count="layers", head_lr_scale=1.0)


def needs_teacher(method: str, sections: Any) -> bool:
    """Whether a method of pre-training, or its section, has a teacher; imports one's own."""
    if method in METHODS:
        return bool(getattr(sections, method.replace("-", "_")).needs_teacher)
    from limbeck.recipes.run.networks import method_class

    return bool(method_class(method).Options.needs_teacher)


def start_run(student: StudentOptions, seed: int, out: Path) -> Run:
    """Without training: a seed's student as it starts is kept in a folder."""
    from limbeck.recipes.run.networks import save_start

    return Run(partial(save_start, student, seed, out), out)


def own_num_heads(start: Encoder) -> int | None:
    """The head count of an untrained student's blocks, None where they differ.

    A count that a method needed in the last block is taken back for the fine-tuning.
    """
    heads = set(start.facts.num_heads)
    return min(heads) if len(heads) == 1 else None


def rehearsed(plan: Plan, configs: Iterable[TrainingOptions], ranks: Ranks) -> list[Existing]:
    """Show what would train two images; its runs, which differ in their seeds.

    So nothing that could be known at the start is found out after days.
    """
    from limbeck.recipes.run.train import rehearse

    rehearse(plan, ranks)
    return [(own.out, own.overwrite, replace(plan, config=own).identity(ranks)) for own in configs]


def open_existing(runs: Iterable[Existing]) -> None:
    """Raise UserError where a folder holds another run; what may be overwritten is cleared."""
    from limbeck.engine.checkpoint import open_run

    for folder, overwrite, identity in runs:
        if folder.exists():
            open_run(folder, *identity, overwrite=overwrite)


@contextmanager
def in_section(section: str, kind: type) -> Iterator[None]:
    """What a UserError says of options is said of those of a section of the class ``kind``."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for field in fields(kind):
            name, dashed = field.name, field.name.replace("_", "-")
            text = re.sub(rf"--{dashed}(?![\w-])", f"--{section.replace('_', '-')}.{dashed}", text)
            if is_dataclass(field.default):  # and not a file's name, such as train.parquet
                own = "|".join(each.name for each in fields(field.default))
                text = re.sub(rf"(?<![\w./-]){name}\.(?=({own})\b)", f"{section}.{name}.", text)
        raise type(error)(text) from error
