"""Read a store: keys are looked up once, records are then read from memory-mapped parts.

A row is a record's address: its part, the fill-in of that part, the place in it. So a row means the
same in every process, and still does when others are filled in.
"""

import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.data.target_store.cache import cached_parts
from limbeck.data.target_store.manifest import MANIFEST, Manifest, read_manifest
from limbeck.data.target_store.parts import (
    FILL_BITS,
    HASHES,
    Fingerprint,
    PartKey,
    PartRecord,
    by_part,
    damaged_part,
    key_hashes,
    survey,
)
from limbeck.data.target_store.place import LocalPlace, Place, RemotePlace, open_place
from limbeck.data.target_store.tensors import find_arrays
from limbeck.data.target_store.writer import read_weights
from limbeck.errors import RunError, UserError
from limbeck.files import open_file, reason_of

log = logging.getLogger("limbeck")

MISSING, SKIPPED = -1, -2
PLACE_BITS = 32
NUM_THREADS = 8


class TargetReader:
    """The records of a store at ``address``, a folder or an fsspec address.

    With ``verify`` the checksums of all parts are compared when it opens; of several processes each
    (``rank`` of ``world_size``) compares its share. What is not local is first copied, once, to
    the folder ``cache`` (see ``target_store.cache``). Parts are mapped when they are first read, in
    each process by itself: a reader can be sent to a worker, or be there when it is forked.

    Raises UserError where there is no store, another format or an unfinished one, and RunError
    where a file is not as it was written. With ``tolerant`` what is wrong with parts is listed in
    ``problems`` instead, and these parts are left out.
    """

    def __init__(
        self,
        address: str,
        verify: bool = True,
        *,
        tolerant: bool = False,
        rank: int = 0,
        world_size: int = 1,
        cache: Path | None = None,
    ) -> None:
        found = survey_store(address)
        if found.problems and not tolerant:
            raise found.problems[0]
        self.place, self.manifest, self.records = found.place, found.manifest, found.records
        self.problems = [str(error) for error in found.problems]
        records = self.records
        if isinstance(self.place, RemotePlace):
            self._files = cached_parts(self.place, self.manifest, records, cache, rank, world_size)
        else:
            assert isinstance(self.place, LocalPlace)
            if cache is not None:
                raise UserError(
                    f"A cache has no effect on {address}, which is local; leave it out."
                )
            self._files = {key: self.place.folder / key.data_name for key in records}
        if verify:
            self.verify(rank, world_size, tolerant=tolerant)
        self._files_of: dict[int, list[PartKey]] = {}
        for key, record in self.records.items():
            if record.num_images:
                self._files_of.setdefault(key.part, []).append(key)
        self._skipped = key_hashes(k for each in self.records.values() for k in each.skipped)
        self._maps: dict[int, dict[str, memoryview]] = {}

    @property
    def num_views(self) -> int:
        """Views of each image, E."""
        return self.manifest.num_views

    def __len__(self) -> int:
        """Images that have records."""
        return sum(record.num_images for record in self.records.values())

    def weights(self) -> dict[str, Tensor]:
        """What of the teacher's weights the store keeps for reading; usually nothing."""
        return read_weights(self.place, self.manifest)

    def verify(self, rank: int = 0, world_size: int = 1, *, tolerant: bool = False) -> None:
        """Compare the checksums of this rank's share of the parts.

        Raises RunError, or with ``tolerant`` lists what is wrong in ``problems``.
        """
        started = time.perf_counter()
        share = list(self.records)[rank::world_size]
        num_bytes = sum(self.records[key].size for key in share)
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            damages = list(pool.map(self.damage, share))
        for key, error in zip(share, damages, strict=True):
            if error is not None and not tolerant:
                raise error
            if error is not None:
                self.problems.append(str(error))
                del self.records[key]
        log.info(
            "Checksums of %d parts (%.2f GB) were compared in %.1f s.",
            len(share), num_bytes / 1e9, time.perf_counter() - started,
        )  # fmt: skip

    def damage(self, key: PartKey) -> RunError | None:
        """What is wrong with the bytes of a part, if anything is."""
        try:
            with open_file(self._files[key]) as file:
                digest = file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return damaged_part(self.place, key, f"can't be read ({reason_of(error)})")
        if digest == self.records[key].sha256:
            return None
        if isinstance(self.place, RemotePlace):
            return RunError(
                f"{self._files[key]}, a copy of {self.place.address}/{key.data_name}, is not what "
                "was copied; delete it and run the same command again."
            )
        return damaged_part(self.place, key, "is not what was written (its checksum differs)")

    def fingerprints(self) -> list[Fingerprint]:
        """The fingerprints of views that came with the parts, one list for all."""
        return [each for record in self.records.values() for each in record.fingerprints or ()]

    def locate(self, keys: Iterable[str]) -> np.ndarray:
        """The rows (n,) int64 of keys: MISSING (-1) or SKIPPED (-2) for those without records."""
        hashes = key_hashes(keys)
        rows = np.full(len(hashes), MISSING, dtype=np.int64)
        asked_of = by_part(hashes, self.manifest.num_parts)
        for key in (key for part in asked_of for key in self._files_of.get(part, ())):
            asked, stored = asked_of[key.part], self.hashes(key)
            places = np.minimum(np.searchsorted(stored, hashes[asked]), len(stored) - 1)
            is_found = stored[places] == hashes[asked]
            rows[asked[is_found]] = _file_number(key) << PLACE_BITS | places[is_found]
        rows[(rows == MISSING) & np.isin(hashes, self._skipped)] = SKIPPED
        return rows

    def hashes(self, key: PartKey) -> np.ndarray:
        """The key hashes (n,) uint64 of a part, in ascending order."""
        return np.frombuffer(self._map(_file_number(key))[HASHES], dtype="<u8")

    def read(self, rows: np.ndarray, view: int | np.ndarray) -> dict[str, np.ndarray]:
        """The arrays (n, *shape) of one view of each of the rows, or of a view (n,) for each."""
        if len(rows) and rows.min() < 0:
            raise ValueError("Some rows have no records (MISSING or SKIPPED); leave them out.")
        if np.min(view) < 0 or np.max(view) >= self.num_views:
            raise ValueError(f"There are views 0..{self.num_views - 1}, and {view} is asked for.")
        records = (rows & (2**PLACE_BITS - 1)) * self.num_views + view
        numbers = (rows >> PLACE_BITS).tolist()
        for number in set(numbers) - self._maps.keys():
            self._map(number)
        found = {}
        for name, spec in self.manifest.arrays.items():
            size = spec.num_bytes
            maps = {number: self._maps[number][name] for number in set(numbers)}
            places = zip(numbers, (records * size).tolist(), strict=True)
            # One copy per record, straight from the page cache: for some hundred bytes at random
            # places of many files that is faster than anything numpy has.
            content = bytearray().join([maps[number][at : at + size] for number, at in places])
            found[name] = np.frombuffer(content, spec.dtype).reshape(len(rows), *spec.shape)
        return found

    def _map(self, number: int) -> dict[str, memoryview]:
        """The bytes of a file's arrays by name, without their being read."""
        if number not in self._maps:
            key = PartKey(number >> FILL_BITS, number & (2**FILL_BITS - 1))
            record = self.records[key]
            # torch's map keeps no file open, as Python's does: thousands of parts would be too
            # many. It is private, so nobody can write to the store through it.
            whole = torch.from_file(
                str(self._files[key]), shared=False, size=record.size, dtype=torch.uint8
            )
            content = memoryview(whole.numpy()).toreadonly()
            arrays = find_arrays(content, self.place, key, record, self.manifest)
            self._maps[number] = {name: content[a:b] for name, (a, b) in arrays.items()}
        return self._maps[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


class Survey(NamedTuple):
    """What is in a store, as far as is known without its records, and what is wrong with it."""

    place: Place
    manifest: Manifest
    records: dict[PartKey, PartRecord]
    problems: list[UserError]


def survey_store(address: str) -> Survey:
    """Look into a store; raises UserError where there is none, or none of this format."""
    place = open_place(address)
    names = place.sizes()
    if MANIFEST not in names:
        parts = [name for name in names if name.startswith("part-")]
        if parts:
            raise UserError(
                f"{place.address}: {MANIFEST} is missing; restore it from a copy, or write another "
                "store with limbeck store-targets."
            )
        raise UserError(
            f"{place.address}: there is no store (no {MANIFEST}); check the path, or write one "
            "with limbeck store-targets."
        )
    manifest = read_manifest(place.read_all([MANIFEST])[0], place.address)
    records, problems = survey(place, manifest)
    unfinished = manifest.num_parts - sum(key.fill == 0 for key in records)
    if unfinished and not problems:
        problems = [
            UserError(
                f"{unfinished} of the {manifest.num_parts} parts of {address} are not written yet; "
                "run the same limbeck store-targets again to finish it."
            )
        ]
    return Survey(place, manifest, records, list(problems))


def _file_number(key: PartKey) -> int:
    return key.part << FILL_BITS | key.fill
