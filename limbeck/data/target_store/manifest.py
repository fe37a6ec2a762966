"""What a target store says of itself, in ``manifest.json``."""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import prod
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from limbeck.documents import as_read, differing, fit, flat, parse_json, to_json
from limbeck.errors import RunError, UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_PARTS = 2**14
"""A process maps every part into its memory, and Linux allows 65,530 such maps."""
NAMES_IN_FILES = {
    "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "float16": "F16", "float32": "F32",
}  # fmt: skip
"""numpy's name of an array's type -> that of safetensors."""
PLAIN = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
"""How what a store says is checked: each value is of its type already, as JSON had it."""

Count = Annotated[int, Field(ge=0, lt=2**32)]
Side = Annotated[int, Field(gt=0, le=2**13)]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]


class ArraySpec(NamedTuple):
    """One named array of a record: its shape, without batch, and numpy's name of its type."""

    shape: Annotated[tuple[Count, ...], Field(strict=False, max_length=8)]
    dtype: Literal["uint8", "int8", "int16", "int32", "int64", "float16", "float32"]

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
    the views follow from, see ``limbeck.recipes.targets.reading``; ``num_views`` of each image.
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
        return as_read(own)

    @property
    def bytes_per_record(self) -> int:
        """Bytes of one view of one image, without the image's share of the key hash."""
        return sum(spec.num_bytes for spec in self.arrays.values())

    @property
    def store_id(self) -> str:
        """32 hex digits that every part repeats, so that none is taken for another store's."""
        plain = json.dumps(asdict(self), sort_keys=True)  # bytes that stores have been known by
        return sha256(plain.encode()).hexdigest()[:32]

    def to_json(self) -> bytes:
        """The content of ``manifest.json``."""
        plain = {**asdict(self), "store_id": self.store_id}
        return (to_json(plain) + "\n").encode()


@with_config(PLAIN)
class _Origin(TypedDict, total=False):
    source: str | None
    weight_hash: str | None


@with_config(PLAIN)
class _Facts(TypedDict, total=False):
    # Bounded, because a grid, views and one entry for each block are made of them.
    embed_dim: Count
    depth: Annotated[int, Field(ge=0, le=2**12)]
    patch_size: Side
    img_size: Annotated[list[Side], Field(min_length=2, max_length=2)]
    num_classes: Annotated[int, Field(ge=0, le=2**25)]
    mean: Channels
    std: Channels
    origin: _Origin


@with_config(PLAIN)
class _Teacher(TypedDict, total=False):
    facts: _Facts
    precision: Literal["fp32", "bf16", "fp16"]
    weights: str | None


@with_config(PLAIN)
class _ViewRecipe(TypedDict, total=False):
    img_size: Side
    views: dict[str, Any] | Literal["released"]
    erase_mean: Channels
    erase_std: Channels


@with_config(PLAIN)
class _Recipe(_ViewRecipe):
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None


@with_config(PLAIN)
class _Data(TypedDict, total=False):
    root: str
    num_images: Count
    fingerprint: str


@with_config({**PLAIN, "extra": "forbid"})
class _Written(TypedDict):
    """``Manifest`` as it lies in its file."""

    kind: str
    params: dict[str, Any]
    arrays: Annotated[dict[str, ArraySpec], Field(min_length=1, max_length=16)]
    teacher: _Teacher
    recipe: _Recipe
    num_views: Annotated[int, Field(gt=0, le=2**20)]
    num_parts: Annotated[int, Field(gt=0, le=MAX_PARTS)]
    data: _Data
    versions: dict[str, str]
    weights: str | None
    store_id: str


def read_manifest(data: bytes, address: str) -> Manifest:
    """The manifest of the store at ``address`` from the bytes of its file.

    Raises UserError for another format, RunError where the file is not as it was written.
    """
    where = f"{address}/{MANIFEST}"
    remedy = "restore it from a copy, or write the store again in another place"
    try:
        values = parse_json(data, where="it")
        version = values.pop("format_version", FORMAT_VERSION)
        arrays = fit(values, _Written, "it")["arrays"] if version == FORMAT_VERSION else {}
    except UserError as error:
        raise RunError(f"{where} is damaged ({damage(error)}); {remedy}.") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"The store {address} has format {str(version)[:20]}, and this version of limbeck "
            f"reads {FORMAT_VERSION}; use the version that wrote it, or write the store again."
        )
    store_id = values.pop("store_id")
    manifest = Manifest(**{**values, "arrays": arrays})
    if manifest.store_id != store_id or manifest.num_parts.bit_count() != 1:
        raise RunError(f"{where} is damaged; {remedy}.")
    return manifest


def damage(error: UserError) -> str:
    """What a schema says of "it", as a part of a sentence."""
    return str(error).removesuffix(".").removesuffix("; it is damaged or something else")


def differences(there: Manifest, here: Manifest) -> list[str]:
    """In words, where the manifest ``there`` is not what ``here`` asks for."""
    found = differing(flat(there.identity), flat(here.identity))
    return [f"{name} is {old} there and {new} here" for name, old, new in found]
