"""Parts of a store that is not local, on this machine: copied once, for all its processes.

A copy is named by its checksum, which is compared when it is made, so a part that was written anew
is another file. All processes that want a part wait for the one that copies it.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from limbeck.data.target_store.manifest import Manifest
from limbeck.data.target_store.parts import PartKey, PartRecord, damaged_part
from limbeck.data.target_store.place import LocalPlace, RemotePlace, Taken, check_room

log = logging.getLogger("limbeck")

NUM_THREADS = 8


def cached_parts(
    place: RemotePlace,
    manifest: Manifest,
    records: Mapping[PartKey, PartRecord],
    folder: Path | None,
    rank: int,
    world_size: int,
) -> dict[PartKey, Path]:
    """The local copies of all parts, in a sub-folder of ``folder`` that is the store's own.

    Each of several processes begins with its share and then waits for the others', as far as they
    are on the same machine. Raises UserError where there is no room for the copies, RunError where
    a part is not what was written.
    """
    folder = folder or Path.home() / ".cache" / "limbeck" / "targets"
    copies = LocalPlace(str(folder / manifest.store_id))
    names = {key: f"{key.name}-{records[key].sha256[:16]}.safetensors" for key in records}
    wanted = [key for key in records if copies.size(names[key]) != records[key].size]
    num_bytes = sum(records[key].size for key in wanted)
    log.info(
        "%s: %d of %d parts (%.2f GB) are copied to %s.",
        place.address, len(wanted), len(records), num_bytes / 1e9, copies.address,
    )  # fmt: skip
    if wanted:
        remedy = "name another folder with --targets.cache"
        check_room(copies, num_bytes, "The copies of the store's parts", remedy)
        copies.begin()
        copies.sweep()

    def copy(key: PartKey) -> None:
        record = records[key]
        if copies.size(names[key]) not in (None, record.size):
            (copies.folder / names[key]).unlink(missing_ok=True)
        try:
            with copies.claim(names[key], wait=True) as publish:
                content = place.read_all([key.data_name])[0]
                if sha256(content).hexdigest() != record.sha256:
                    raise damaged_part(place, key, "is not what was written (its checksum differs)")
                publish(content)
        except Taken:
            pass  # Another process of this machine was as fast.

    first = len(wanted) * rank // world_size
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for _ in pool.map(copy, wanted[first:] + wanted[:first]):
            pass
    return {key: copies.folder / name for key, name in names.items()}
