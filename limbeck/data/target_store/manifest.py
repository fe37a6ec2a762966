"""What a target store says of itself, in ``manifest.json``."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import prod
from typing import Any, NamedTuple

import numpy as np

from limbeck.errors import RunError, UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class ArraySpec(NamedTuple):
    """One named array of a record: its shape, without batch, and numpy's name of its type."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes of one record's array."""
        return np.dtype(self.dtype).itemsize * prod(self.shape)


@dataclass(frozen=True)
class Manifest:
    """All that identifies a store; plain data.

    ``kind`` and ``params`` say what the arrays mean (``limbeck.methods.targets``); ``arrays`` is
    what a record has. ``teacher``: "facts" (the ``EncoderFacts`` of who answered), "precision" and
    "weights", their hash (if not given that of the facts' origin, or its source). ``recipe``: what
    the views follow from, see ``limbeck.recipes.targets``; ``num_views`` of each image.
    ``num_parts``, a power of two. ``data``: lineage of the images it was begun with. ``versions``
    of the libraries that made the views. ``normalisation`` is the teacher's own, in its facts.
    ``weights``: SHA-256 of ``weights.safetensors``, None where the store has none (``open_writer``
    sets it).
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
    weights: str | None = None
    format_version: int = FORMAT_VERSION

    @property
    def identity(self) -> dict[str, Any]:
        """What can't differ within one store: plain data, as read back from JSON.

        Of the teacher what it computes, wherever its weights lie.
        """
        names = ("format_version", "kind", "params", "arrays", "teacher", "recipe", "num_views")
        own = {name: getattr(self, name) for name in names}
        facts = dict(self.teacher.get("facts", {}))
        origin = facts.pop("origin", {})
        known = origin.get("weight_hash") or origin.get("source")
        own["teacher"] = {"weights": known} | self.teacher | {"facts": facts}
        return json.loads(json.dumps(own))

    @property
    def bytes_per_record(self) -> int:
        """Bytes of one view of one image, without the image's share of the key hash."""
        return sum(spec.num_bytes for spec in self.arrays.values())

    @property
    def store_id(self) -> str:
        """32 hex digits that every part repeats, so that none is taken for another store's."""
        plain = json.dumps(asdict(self), sort_keys=True)
        return sha256(plain.encode()).hexdigest()[:32]

    def to_json(self) -> bytes:
        """The content of ``manifest.json``."""
        plain = {**asdict(self), "store_id": self.store_id}
        return (json.dumps(plain, indent=2, allow_nan=False) + "\n").encode()


def read_manifest(data: bytes, address: str) -> Manifest:
    """The manifest of the store at ``address`` from the bytes of its file.

    Raises UserError for another format, RunError where the file is not as it was written.
    """
    damaged = RunError(
        f"{address}/{MANIFEST} is damaged; restore it from a copy, or write the store again in "
        "another place."
    )
    try:
        values = json.loads(data)
        version, store_id = values.pop("format_version"), values.pop("store_id")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise damaged from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"The store {address} has format {version}, and this version of limbeck reads "
            f"{FORMAT_VERSION}; use the version that wrote it, or write the store again."
        )
    try:
        arrays = {
            n: ArraySpec(tuple(shape), dtype) for n, (shape, dtype) in values["arrays"].items()
        }
        manifest = Manifest(**{**values, "arrays": arrays})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise damaged from error
    if manifest.store_id != store_id:
        raise damaged
    return manifest


def differences(there: Manifest, here: Manifest) -> list[str]:
    """In words, where the manifest ``there`` is not what ``here`` asks for."""
    old, new = (dict(_flatten(each.identity)) for each in (there, here))
    return [
        f"{name} is {_short(old, name)} there and {_short(new, name)} here"
        for name in {**new, **old}
        if _short(old, name) != _short(new, name)
    ]


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(values: dict[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "absent"
