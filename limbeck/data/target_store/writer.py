"""Write a store: its manifest once, then whole parts, by any number of processes.

A process that ends in whatever way loses the part it was writing and no other; the same command
goes on. Two processes must not write the same part: the caller shares them out (part modulo number
of processes), and a lock or a look at what is there refuses the second.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from limbeck.data.target_store.manifest import MANIFEST, Manifest, differences, read_manifest
from limbeck.data.target_store.parts import (
    HASHES,
    Fingerprint,
    PartKey,
    PartRecord,
    by_part,
    check_arrays,
    key_hashes,
    part_of,
    read_records,
    records_of_part,
)
from limbeck.data.target_store.place import Place, Publish, Taken, open_place
from limbeck.data.target_store.tensors import read_hashes
from limbeck.errors import RunError, UserError

log = logging.getLogger("limbeck")

WEIGHTS = "weights.safetensors"
NUM_THREADS = 8  # that wait for an object store


def open_writer(
    address: str, manifest: Manifest, weights: Mapping[str, Tensor] | None = None
) -> "StoreWriter":
    """Begin a store at ``address``, a folder or fsspec address, or go on with the one there.

    ``weights``: what of the teacher reading needs; those that were written first count
    (``StoreWriter.weights``). Any number of processes may do so at once, with the same manifest.
    What the store was begun with stays (data, parts, versions): use the writer's ``manifest``.
    Raises UserError where another store is there, or other files are.
    """
    place = open_place(address)
    names = set(place.sizes())
    if MANIFEST not in names:
        if foreign := sorted(names - {WEIGHTS}):
            raise UserError(
                f"{address} is not empty and holds no store ({', '.join(foreign[:3])}); choose "
                "another place."
            )
        place.begin()
        # The manifest last: it has the checksum of the weights.
        _publish_once(place, WEIGHTS, save_tensors(dict(weights)) if weights else None)
        digest = sha256(place.read_all([WEIGHTS])[0]).hexdigest() if weights else None
        _publish_once(place, MANIFEST, replace(manifest, weights=digest).to_json())
    there = read_manifest(place.read_all([MANIFEST])[0], place.address)
    if differing := differences(there, manifest):
        more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        raise UserError(
            f"{address} holds another store: {'; '.join(differing[:3])}{more}. Choose another "
            "place, or the options that it was begun with."
        )
    place.sweep()
    for name, version in manifest.versions.items():
        if there.versions.get(name) != version:
            log.warning(
                "%s was begun with %s %s; this is %s. Views that differ for it will be refused.",
                address, name, there.versions.get(name), version,
            )  # fmt: skip
    content = save_tensors(dict(weights)) if weights else None
    if content and place.size(WEIGHTS) is None and sha256(content).hexdigest() == there.weights:
        _publish_once(place, WEIGHTS, content)
    writer = StoreWriter(place, there, manifest.versions)
    if not _are_alike(writer.weights(), weights or {}):
        raise UserError(
            f"{address} holds weights of another teacher; choose another place, or the teacher "
            "that it was begun with."
        )
    return writer


class StoreWriter:
    """What is left to write in a store, and the writing of it; see ``open_writer``."""

    def __init__(self, place: Place, manifest: Manifest, versions: dict[str, str]) -> None:
        self.place, self.manifest, self.versions = place, manifest, versions

    def weights(self) -> dict[str, Tensor]:
        """What of the teacher's weights the store keeps for reading; usually nothing."""
        return read_weights(self.place, self.manifest)

    def fingerprints(self) -> list[Fingerprint]:
        """The fingerprints of views that came with the finished parts, one list for all."""
        records = read_records(self.place, self.manifest).values()
        return [each for record in records for each in record.fingerprints or ()]

    def missing(self, keys: Iterable[str], *, retry_skipped: bool = False) -> dict[int, np.ndarray]:
        """What is left: part -> places in ``keys`` (int64) of those without a record.

        A part that was never written is named even where it has no key: a store is complete when
        all its parts are there. Keys that were skipped count as done unless ``retry_skipped``.
        Raises UserError for two keys with one hash.
        """
        keys = list(keys)
        hashes = key_hashes(keys)
        _check_unique(hashes, keys)
        records = read_records(self.place, self.manifest)
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            present = [*pool.map(self._hashes_of, records.items())]
        if not retry_skipped:
            present += [key_hashes(record.skipped) for record in records.values()]
        left = np.flatnonzero(~np.isin(hashes, np.concatenate([hashes[:0], *present])))
        found = by_part(hashes[left], self.manifest.num_parts)
        return {
            part: left[found.get(part, slice(0))]
            for part in range(self.manifest.num_parts)
            if part in found or PartKey(part, 0) not in records
        }

    def _hashes_of(self, part: tuple[PartKey, PartRecord]) -> np.ndarray:
        return read_hashes(self.place, *part, self.manifest)

    def write_part(
        self,
        part: int,
        hashes: np.ndarray,
        arrays: dict[str, np.ndarray],
        skipped: Mapping[str, str] | None = None,
        fingerprints: list[Fingerprint] | None = None,
    ) -> None:
        """Write the records of images whose ``hashes`` (n,) all fall into ``part``, in any order.

        ``arrays`` (n, E, *shape) each, as the manifest says; ``skipped``: key -> why it has none. A
        finished part gets a fill-in, unless that would say nothing new. Raises RunError for hashes
        that are there already, on a full disk, and where another process is writing the part.
        """
        manifest = self.manifest
        if check_arrays(arrays, manifest.arrays, manifest.num_views) != len(hashes):
            raise ValueError(f"{len(hashes)} hashes are not one for each image of the arrays.")
        if (part_of(hashes, manifest.num_parts) != part).any():
            raise ValueError(f"Some hashes do not belong to part {part}.")
        before = records_of_part(self.place, manifest, part)
        known = {key for record in before.values() for key in record.skipped}
        if before and not len(hashes) and set(skipped or {}) <= known:
            return  # Nothing that is not said already.
        target = PartKey(part, len(before))
        with _claimed(self.place, target) as publish:
            together = np.concatenate([hashes, *map(self._hashes_of, before.items())])
            if len(np.unique(together)) < len(together):
                raise RunError(
                    f"Some images of part {part} have records in {self.place.address} already, or "
                    "are named twice; ask the store what is missing, and write only that."
                )
            order = np.argsort(hashes)
            sorted_arrays = {name: np.ascontiguousarray(a[order]) for name, a in arrays.items()}
            content = save({HASHES: hashes[order], **sorted_arrays})
            self.place.write(target.data_name, content)
            record = PartRecord(
                store_id=manifest.store_id,
                num_images=len(hashes),
                size=len(content),
                sha256=sha256(content).hexdigest(),
                skipped=dict(skipped or {}),
                fingerprints=fingerprints,
                versions=self.versions,
            )
            publish(record.to_json())

    def check_there(self, parts: Iterable[int]) -> None:
        """Raise RunError unless these parts lie in the store now, beside its manifest.

        Whoever moves or clears the folder while it is written to is told.
        """
        names = self.place.sizes().keys()
        keys = [PartKey(part, 0) for part in parts]
        wanted = [MANIFEST, *(name for key in keys for name in (key.json_name, key.data_name))]
        if lost := [name for name in wanted if name not in names]:
            raise RunError(
                f"{self.place.address} has lost {lost[0]} (and {len(lost) - 1} more files) while "
                "it was written; see who moves or clears it, then run the same command again."
            )


def read_weights(place: Place, manifest: Manifest) -> dict[str, Tensor]:
    """The weights of a store; raises RunError where they are not what was written."""
    if manifest.weights is None:
        return {}
    remedy = "run the same limbeck store-targets again, which writes it anew"
    if place.size(WEIGHTS) is None:
        raise RunError(f"{place.address}/{WEIGHTS} is missing; {remedy}.")
    content = place.read_all([WEIGHTS])[0]
    if sha256(content).hexdigest() != manifest.weights:
        raise RunError(
            f"{place.address}/{WEIGHTS} is not what was written; delete it and {remedy}."
        )
    try:
        return load_tensors(content)
    except (SafetensorError, ValueError) as error:
        raise RunError(
            f"{place.address}/{WEIGHTS} holds no weights ({error}); write the store again in "
            "another place."
        ) from error


def _publish_once(place: Place, name: str, content: bytes | None) -> None:
    """Write a file that several processes want to, unless it is there; the caller compares it."""
    if content is not None:
        with suppress(Taken), place.claim(name, wait=True) as publish:
            publish(content)


def _are_alike(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> bool:
    """Whether weights are the same, but for what another device makes of their last bits."""
    return there.keys() == here.keys() and all(
        value.shape == here[name].shape
        and torch.allclose(value.float(), here[name].float(), rtol=1e-2, atol=1e-4)
        for name, value in there.items()
    )


@contextmanager
def _claimed(place: Place, key: PartKey) -> Iterator[Publish]:
    try:
        with place.claim(key.json_name) as publish:
            yield publish
    except Taken as error:
        raise RunError(
            f"Another process has written {place.address}/{key.name} meanwhile; start several "
            "processes with torchrun, which shares the parts out, and run the same command again."
        ) from error


def _check_unique(hashes: np.ndarray, keys: list[str]) -> None:
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(np.diff(hashes[order]) == 0)
    if len(same):
        first, second = (keys[order[place]] for place in (same[0], same[0] + 1))
        raise UserError(
            f"Two images have the same name, '{first}'; a store needs one for each."
            if first == second
            else f"The names '{first}' and '{second}' have the same 64-bit hash; rename one."
        )
