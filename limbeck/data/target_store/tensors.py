"""Where in a part's safetensors file its arrays lie, to read some records and not the rest."""

from math import prod
from typing import Annotated, Any

import numpy as np
from pydantic import Field, with_config
from typing_extensions import TypedDict

from limbeck.data.target_store.manifest import NAMES_IN_FILES, PLAIN, Manifest, damage
from limbeck.data.target_store.parts import (
    HASHES,
    MAX_HEADER_BYTES,
    PartKey,
    PartRecord,
    damaged_part,
)
from limbeck.data.target_store.place import Place
from limbeck.documents import fit, parse_json
from limbeck.errors import UserError

LENGTH_BYTES = 8  # of the header's length, with which a safetensors file begins
HEADER_GUESS = 1024  # bytes; a header names two or three arrays


@with_config(PLAIN)
class _Entry(TypedDict):
    dtype: str
    shape: list[int]
    data_offsets: Annotated[list[int], Field(min_length=2, max_length=2)]


def find_arrays(
    start: bytes | memoryview, place: Place, key: PartKey, record: PartRecord, manifest: Manifest
) -> dict[str, tuple[int, int]]:
    """Name -> first byte and the one after the last, in a file that begins with ``start``.

    Raises RunError unless the file has exactly the arrays of the manifest.
    """
    body = LENGTH_BYTES + header_bytes(start)
    if not LENGTH_BYTES < body <= min(len(start), LENGTH_BYTES + MAX_HEADER_BYTES):
        raise damaged_part(place, key, "is damaged")
    try:
        header: dict[str, Any] = parse_json(bytes(start[LENGTH_BYTES:body]), where="it")
        header.pop("__metadata__", None)
        entries = fit(header, dict[str, _Entry], "it")
    except UserError as error:
        raise damaged_part(place, key, f"is damaged ({damage(error)})") from error
    shapes = {HASHES: ("U64", [record.num_images], 8)} | {
        name: (
            NAMES_IN_FILES[spec.dtype],
            [record.num_images, manifest.num_views, *spec.shape],
            spec.num_bytes,
        )
        for name, spec in manifest.arrays.items()
    }
    found = {
        name: (body + entry["data_offsets"][0], body + entry["data_offsets"][1])
        for name, entry in entries.items()
    }
    if entries.keys() != shapes.keys() or not all(
        (entries[name]["dtype"], entries[name]["shape"]) == (dtype, shape)
        and body <= found[name][0]
        and found[name][1] <= record.size
        and found[name][1] - found[name][0] == prod(shape[:2]) * num_bytes
        for name, (dtype, shape, num_bytes) in shapes.items()
    ):
        raise damaged_part(place, key, "has other arrays than the manifest says")
    return found


def header_bytes(start: bytes | memoryview) -> int:
    """Length of the header of a file that begins with ``start``."""
    return int.from_bytes(start[:LENGTH_BYTES], "little")


def read_hashes(place: Place, key: PartKey, record: PartRecord, manifest: Manifest) -> np.ndarray:
    """The key hashes (n,) uint64 of a part, in ascending order, without its records."""
    # safetensors puts the widest type first, so these are at the start.
    guess = LENGTH_BYTES + HEADER_GUESS + 8 * record.num_images
    start = place.read_range(key.data_name, 0, min(guess, record.size))
    first, end = find_arrays(start, place, key, record, manifest)[HASHES]
    content = start[first:end] if end <= len(start) else place.read_range(key.data_name, first, end)
    if len(content) != end - first:
        raise damaged_part(place, key, "is cut short")
    return np.frombuffer(content, dtype="<u8")
