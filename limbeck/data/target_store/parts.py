"""The parts of a store: which records lie in which, and the file beside each that says it is whole.

A part has the records of all keys whose hash falls into its range of hashes, so whoever looks for
a key knows where to look. ``part-00012.safetensors`` has them sorted by hash: "hashes" (n,) uint64
and every array of a record as (n, E, *shape) for E views. ``part-00012.json`` is written last. What
is added later goes to ``part-00012.1.safetensors`` and so on, the part's fill-ins.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, with_config
from typing_extensions import TypedDict

from limbeck.data.source import name_digest
from limbeck.data.target_store.manifest import MAX_PARTS, PLAIN, ArraySpec, Count, Manifest, damage
from limbeck.data.target_store.place import Place
from limbeck.documents import parse_json, to_json
from limbeck.errors import RunError, UserError

HASHES = "hashes"
PART_BYTES = 32 * 2**20
PART_IMAGES = 4096
NUM_FINGERPRINTS = 32  # in a store of few parts, of which a run may see a part
MAX_PART_BYTES = 2**34  # its writer has it in memory
MAX_HEADER_BYTES = 2**20  # of its file; it names two or three arrays
FILL_BITS = 10
"""Of a fill-in's number in the address of a record."""
PART_NAME = re.compile(r"part-(\d{5})(?:\.([1-9]\d*))?\.(safetensors|json)", re.ASCII)


class PartKey(NamedTuple):
    """A part, or its fill-in of a number (0: the part itself)."""

    part: int
    fill: int

    @property
    def name(self) -> str:
        """The name of its files, without suffix."""
        return f"part-{self.part:05d}" + (f".{self.fill}" if self.fill else "")

    @property
    def data_name(self) -> str:
        """The file with the records."""
        return f"{self.name}.safetensors"

    @property
    def json_name(self) -> str:
        """The file that says it is whole."""
        return f"{self.name}.json"


@with_config(PLAIN)
class Fingerprint(TypedDict):
    """Of the pixels of one view, as hex digits."""

    key: str
    view: Count
    pixels: str


@dataclass(frozen=True)
class PartRecord:
    """What is said of a finished part: its size in bytes, SHA-256 and number of images.

    ``skipped``: key -> why it has no records. ``fingerprints``: of the pixels of some views, as the
    writer gave them, with the ``versions`` of the libraries that made them. ``store_id`` is the
    manifest's.
    """

    store_id: str
    num_images: Count
    size: Annotated[int, Field(ge=0, le=MAX_PART_BYTES)]
    sha256: str
    skipped: dict[str, str] = field(default_factory=dict)
    fingerprints: list[Fingerprint] | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The content of its file."""
        return (to_json(asdict(self), indent=1) + "\n").encode()


def key_hashes(keys: Iterable[str]) -> np.ndarray:
    """The 64-bit hashes (n,) uint64 of keys: BLAKE2b of their UTF-8 bytes, big-endian."""
    digests = b"".join(name_digest(key, 8) for key in keys)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def num_parts_for(num_images: int, bytes_per_image: int) -> int:
    """Parts for a store, a power of two: about 32 MB or 4,096 images each, what comes first.

    ``bytes_per_image`` of all its views.
    """
    wanted = max(num_images / PART_IMAGES, num_images * bytes_per_image / PART_BYTES, 1)
    return min(MAX_PARTS, 2 ** round(np.log2(wanted)))


def part_of(hashes: np.ndarray, num_parts: int) -> np.ndarray:
    """The part (n,) int64 into whose range each hash falls."""
    bits = num_parts.bit_length() - 1
    # In two steps, because a shift by all 64 bits is undefined.
    return (hashes >> np.uint64(1) >> np.uint64(63 - bits)).astype(np.int64)


def by_part(hashes: np.ndarray, num_parts: int) -> dict[int, np.ndarray]:
    """Part -> places (int64) of the hashes that fall into it, both in their order."""
    parts = part_of(hashes, num_parts)
    order = np.argsort(parts, kind="stable")
    numbers, starts = np.unique(parts[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, starts)[1:], strict=True))


def choose_views(num_images: int, num_views: int, num_parts: int) -> list[tuple[int, int]]:
    """(place, view) of a part's records whose pixels get a fingerprint, from first to last."""
    if not num_images:
        return []
    count = max(2, NUM_FINGERPRINTS // num_parts)
    places, views = (np.linspace(0, n - 1, count).round() for n in (num_images, num_views))
    return sorted({(int(place), int(view)) for place, view in zip(places, views, strict=True)})


def survey(place: Place, manifest: Manifest) -> tuple[dict[PartKey, PartRecord], list[RunError]]:
    """The finished parts and fill-ins, in their order, and all that is wrong with the others.

    Wrong are what is said of a part and is damaged or of another store, and data that is missing or
    has another size. Checksums are not compared.
    """
    sizes = place.sizes()
    keys = sorted(key for name in sizes if (key := parse_name(name, "json")))
    records: dict[PartKey, PartRecord] = {}
    problems = []
    for key, content in zip(keys, _read_each(place, keys), strict=True):
        try:
            if isinstance(content, RunError):
                raise content
            records[key] = _read_record(content, key, place, manifest)
            _check_place(key, keys, place, manifest)
            _check_size(key, records[key], sizes, place)
        except RunError as error:
            records.pop(key, None)
            problems.append(error)
    return records, problems


def _read_each(place: Place, keys: list[PartKey]) -> list[bytes | RunError]:
    """The files of ``keys``, or why one can't be read."""
    try:
        return [*place.read_all([key.json_name for key in keys])]
    except RunError:
        pass  # Which ones it is that can't be read is found one by one.
    found: list[bytes | RunError] = []
    for key in keys:
        try:
            found += place.read_all([key.json_name])
        except RunError as error:
            reason = str(error).partition("; ")[0]
            found.append(RunError(f"{reason}; {_remedy(key)}."))
    return found


def read_records(place: Place, manifest: Manifest) -> dict[PartKey, PartRecord]:
    """What is said of every finished part and fill-in, in their order; raises the first problem."""
    records, problems = survey(place, manifest)
    if problems:
        raise problems[0]
    return records


def _check_place(key: PartKey, keys: list[PartKey], place: Place, manifest: Manifest) -> None:
    if key.part >= manifest.num_parts:
        raise RunError(
            f"{place.address}/{key.json_name} is not of this store, which has "
            f"{manifest.num_parts} parts; move it and {key.data_name} away."
        )
    if key.fill >= 2**FILL_BITS:
        raise RunError(
            f"{place.address}/{key.json_name}: a part has at most {2**FILL_BITS - 1} fill-ins; "
            "write the store again in another place."
        )
    before = PartKey(key.part, key.fill - 1)
    if key.fill and before not in keys:
        raise RunError(
            f"{place.address}/{before.json_name} is missing, though there is {key.json_name}, "
            "which came after it; restore it from a copy, or delete all that begins with "
            f"part-{key.part:05d} and run the same limbeck store-targets again."
        )


def _check_size(key: PartKey, record: PartRecord, sizes: dict[str, int], place: Place) -> None:
    if key.data_name not in sizes:
        raise damaged_part(
            place, key, f"is missing, though {key.json_name} says that it was finished"
        )
    if (size := sizes[key.data_name]) != record.size:
        raise damaged_part(place, key, f"has {size} bytes, and {record.size} were written")


def records_of_part(place: Place, manifest: Manifest, part: int) -> dict[PartKey, PartRecord]:
    """What is said of a part and its fill-ins, in their order; empty where it is not finished."""
    records: dict[PartKey, PartRecord] = {}
    while place.size((key := PartKey(part, len(records))).json_name) is not None:
        records[key] = _read_record(place.read_all([key.json_name])[0], key, place, manifest)
    return records


def parse_name(name: str, suffix: str) -> PartKey | None:
    """The part of a file's name; None where it is no part's with this suffix."""
    found = PART_NAME.fullmatch(name)
    if found is None or found[3] != suffix:
        return None
    return PartKey(int(found[1]), int(found[2] or 0))


def _read_record(content: bytes, key: PartKey, place: Place, manifest: Manifest) -> PartRecord:
    where = f"{place.address}/{key.json_name}"
    try:
        record = parse_json(content, PartRecord, "it")
    except UserError as error:
        raise RunError(f"{where} is damaged ({damage(error)}); {_remedy(key)}.") from error
    num_bytes = record.num_images * (8 + manifest.num_views * manifest.bytes_per_record)
    is_whole = num_bytes < record.size < num_bytes + MAX_HEADER_BYTES
    if not is_whole or any(
        each["view"] >= manifest.num_views for each in record.fingerprints or ()
    ):
        raise RunError(f"{where} is damaged; {_remedy(key)}.")
    if record.store_id != manifest.store_id:
        raise RunError(
            f"{where} belongs to another store ({record.store_id}; this one is "
            f"{manifest.store_id}); move it and {key.data_name} away."
        )
    return record


def damaged_part(place: Place, key: PartKey, how: str) -> RunError:
    """The error for a part whose data is not what was written."""
    return RunError(f"{place.address}/{key.data_name} {how}; {_remedy(key)}.")


def _remedy(key: PartKey) -> str:
    return (
        f"restore it from a copy, or delete {key.name}.* and run the same limbeck store-targets "
        "again, which writes it anew"
    )


def check_arrays(arrays: dict[str, np.ndarray], specs: dict[str, ArraySpec], num_views: int) -> int:
    """Raise ValueError unless each array is (n, num_views, *shape) as specified; returns n."""
    lengths = {len(array) for array in arrays.values()}
    found = {name: ArraySpec(array.shape[2:], str(array.dtype)) for name, array in arrays.items()}
    if found != specs or len(lengths) != 1 or any(a.shape[1] != num_views for a in arrays.values()):
        raise ValueError(f"The arrays are not (n, {num_views}, ...) of {specs}, but of {found}.")
    return lengths.pop()
