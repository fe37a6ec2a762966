"""Where in a part's safetensors file its arrays lie, to read some records and not the rest."""

import json

import numpy as np

from limbeck.data.target_store.manifest import Manifest
from limbeck.data.target_store.parts import HASHES, PartKey, PartRecord, damaged_part
from limbeck.data.target_store.place import Place

LENGTH_BYTES = 8  # of the header's length, with which a safetensors file begins
HEADER_GUESS = 1024  # bytes; a header names two or three arrays


def find_arrays(
    start: bytes | memoryview, place: Place, key: PartKey, record: PartRecord, manifest: Manifest
) -> dict[str, tuple[int, int]]:
    """Name -> first byte and the one after the last, in a file that begins with ``start``.

    Raises RunError unless the file has exactly the arrays of the manifest.
    """
    body = LENGTH_BYTES + header_bytes(start)
    shapes = {HASHES: ([record.num_images], 8)} | {
        name: ([record.num_images, manifest.num_views, *spec.shape], spec.num_bytes)
        for name, spec in manifest.arrays.items()
    }
    try:
        header = json.loads(bytes(start[LENGTH_BYTES:body]))
        header.pop("__metadata__", None)
        found = {
            name: (body + entry["data_offsets"][0], body + entry["data_offsets"][1])
            for name, entry in header.items()
        }
        fits = header.keys() == shapes.keys() and all(
            header[name]["shape"] == shape
            and found[name][1] - found[name][0] == np.prod(shape[:2]) * num_bytes
            for name, (shape, num_bytes) in shapes.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged_part(place, key, "is damaged") from error
    if not fits:
        raise damaged_part(place, key, "has other arrays than the manifest says")
    return found


def header_bytes(start: bytes | memoryview) -> int:
    """Length of the header of a file that begins with ``start``."""
    return int.from_bytes(start[:LENGTH_BYTES], "little")


def read_hashes(place: Place, key: PartKey, record: PartRecord, manifest: Manifest) -> np.ndarray:
    """The key hashes (n,) uint64 of a part, in ascending order, without its records."""
    # safetensors puts the widest type first, so these are at the start.
    guess = LENGTH_BYTES + HEADER_GUESS + 8 * record.num_images
    start = place.read_range(key.data_name, 0, guess)
    if LENGTH_BYTES + header_bytes(start) > len(start):
        raise damaged_part(place, key, "is damaged")
    first, end = find_arrays(start, place, key, record, manifest)[HASHES]
    content = start[first:end] if end <= len(start) else place.read_range(key.data_name, first, end)
    if len(content) != end - first:
        raise damaged_part(place, key, "is cut short")
    return np.frombuffer(content, dtype="<u8")
