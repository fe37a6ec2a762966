"""What a target store says of itself, in ``manifest.json``."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

FORMAT_VERSION = 1


class ArraySpec(NamedTuple):
    """One named array of a record: its shape, without batch, and numpy's name of its type."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Manifest:
    """All that identifies a store; plain data.

    ``kind`` and ``params`` say what the arrays mean (``limbeck.methods.targets``); ``arrays`` is
    what a record has. ``teacher``: "facts" (the ``EncoderFacts`` of who answered) and
    "precision". ``recipe``: what the views
    follow from, see ``limbeck.recipes.targets``; ``num_views`` of each image. ``num_parts``, a
    power of two. ``data``: lineage of the images it was begun with. ``versions`` of the libraries
    that made the views. ``normalisation`` is the teacher's own, in its facts.
    """

    kind: str
    params: dict[str, Any]
    arrays: dict[str, ArraySpec]
    teacher: dict[str, Any]
    recipe: dict[str, Any]
    num_views: int
    num_parts: int
    data: dict[str, Any]
    versions: dict[str, str]
    format_version: int = FORMAT_VERSION

    @property
    def identity(self) -> dict[str, Any]:
        """What can't differ within one store: plain data, as read back from JSON."""
        names = ("format_version", "kind", "params", "arrays", "teacher", "recipe", "num_views")
        return json.loads(json.dumps({name: getattr(self, name) for name in names}))
