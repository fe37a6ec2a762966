"""Random reads of stored soft labels: a target store against the published layout, read plainly.

    python -m benchmarks target_store [--repeats 5]

Records of 4 + 4K bytes, K = 100: a seed, class ids in 16 bits, probabilities in float16. Both
hold the same bytes, one record per key. Two forked processes at once read batches of 256 random
records, from the page cache; a rate is the sum of both. What is timed, for both: from a batch of
keys (or rows) to two arrays in memory, ids (256, K) int16 and probabilities (256, K) float32.

Plain (the layout of TinyViT's released code, arXiv 2207.10666: a file of keys, a file of records):
look the key up in the process's dictionary, seek, read, take ids and probabilities apart, stack.
Ours, "rows known": keys were looked up once, before the processes started, as a training does, and
rows lie in shared memory; "keys looked up": with the look-up in every batch. What a training stores
is smaller and coded (``LabelCodec``); it is decoded on the training's device and not by who reads,
so that its time stands beside the table.

Start is what a process does before it can read. Its own memory is Private_Dirty of
/proc/self/smaps_rollup after reading, beyond that before the start. Both are deleted afterwards.
"""

import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from benchmarks.timing import take_turns
from limbeck.data.target_store import (
    ArraySpec,
    Manifest,
    TargetReader,
    key_hashes,
    num_parts_for,
    open_writer,
    part_of,
)
from limbeck.ops.label_codes import LabelCodec

TOP_K, NUM_CLASSES = 100, 21_841
SIZES = (10_000, 1_000_000, 10_000_000)
BATCH_SIZE = 256
NUM_BATCHES = 200  # per process and repeat
NUM_PROCESSES = 2
TARGET_RATIO = 5
PLAIN_BYTES = 4 + 4 * TOP_K
BLOCK = 100_000  # records written at once


class Reading(Protocol):
    """One way of reading; it is made before the processes start."""

    def start(self) -> None:
        """What a process has to do before it can read."""
        ...

    def read(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and probabilities of the records of the keys at some places."""
        ...


def name_of(place: int) -> str:
    return f"n{place:09d}"


class Plain:
    """The published layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self) -> None:
        """See ``Reading``."""
        with open(self.folder / "keys.txt", encoding="utf-8") as lines:
            self.index = {line.rstrip("\n"): number for number, line in enumerate(lines)}
        # Unbuffered: a buffer would be filled anew, with 8 KB, for every record.
        self.values = open(self.folder / "values.bin", "rb", buffering=0)  # noqa: SIM115

    def read(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ``Reading``."""
        ids, probs = [], []
        for place in places.tolist():
            self.values.seek(self.index[name_of(place)] * PLAIN_BYTES)
            record = self.values.read(PLAIN_BYTES)
            ids.append(np.frombuffer(record, np.int16, TOP_K, 4))
            probs.append(np.frombuffer(record, np.float16, TOP_K, 4 + 2 * TOP_K))
        return np.stack(ids), np.stack(probs).astype(np.float32)


class Ours:
    """A target store, rows known."""

    def __init__(self, reader: TargetReader, rows: torch.Tensor) -> None:
        self.reader, self.rows = reader, rows

    def start(self) -> None:
        """See ``Reading``."""
        torch.set_num_threads(1)

    def find(self, places: np.ndarray) -> np.ndarray:
        """The rows of the keys at some places."""
        return self.rows.numpy()[places]

    def read(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ``Reading``."""
        records = self.reader.read(self.find(places), 0)["records"]
        ids, probs = records[:, 4 : 4 + 2 * TOP_K], records[:, 4 + 2 * TOP_K :]
        return ids.view(np.int16).copy(), probs.view(np.float16).astype(np.float32)


class LookedUp(Ours):
    """The same with a look-up in every batch."""

    def find(self, places: np.ndarray) -> np.ndarray:
        """The rows of the keys at some places."""
        return self.reader.locate(name_of(place) for place in places.tolist())


@dataclass(frozen=True)
class Measured:
    """Records per second of all processes, seconds to start one, bytes of its own memory.

    ``digest`` of what some places hold, as it was read.
    """

    rate: float
    start: float
    memory: float
    digest: str


def records_of(places: np.ndarray) -> np.ndarray:
    """The records of keys (n, bytes) uint8: some bytes that follow from the place."""
    noise = np.random.default_rng(0).integers(0, 256, (1, PLAIN_BYTES), dtype=np.uint8)
    noise[:, 5 + 2 * TOP_K :: 2] %= 0x3C  # probabilities are finite, and below 1
    records = np.repeat(noise, len(places), axis=0)
    records[:, :8] = places.astype("<i8")[:, None].view(np.uint8)
    return records


def write_plain(folder: Path, count: int) -> None:
    folder.mkdir()
    with open(folder / "keys.txt", "w", encoding="utf-8") as keys:
        keys.writelines(f"{name_of(place)}\n" for place in range(count))
    with open(folder / "values.bin", "wb") as values:
        for first in range(0, count, BLOCK):
            values.write(records_of(np.arange(first, min(first + BLOCK, count))).tobytes())


def write_ours(folder: Path, count: int) -> None:
    manifest = Manifest(
        kind="published",
        params={},
        arrays={"records": ArraySpec((PLAIN_BYTES,), "uint8")},
        teacher={},
        recipe={"seed": 0},
        num_views=1,
        num_parts=num_parts_for(count, PLAIN_BYTES),
        data={},
        versions={},
    )
    writer = open_writer(str(folder), manifest)
    hashes = key_hashes(name_of(place) for place in range(count))
    order = np.argsort(hashes)
    cuts = np.searchsorted(part_of(hashes[order], manifest.num_parts), range(manifest.num_parts))
    for part, places in enumerate(np.split(order, cuts[1:])):
        writer.write_part(part, hashes[places], {"records": records_of(places)[:, None]})


@contextmanager
def stores(count: int) -> Iterator[Path]:
    """Both layouts of so many records in a folder that is deleted afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="limbeck-benchmark-"))
    try:
        write_plain(folder / "plain", count)
        write_ours(folder / "ours", count)
        yield folder
    finally:
        shutil.rmtree(folder)


def own_memory() -> int:
    """Bytes of this process that no other shares and no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    (kilobytes,) = (int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
    return 1024 * kilobytes


def measure(reading: Reading, count: int, repeats: int) -> Measured:
    """Start the processes once, let them read at the same time, ``repeats`` times."""
    context = multiprocessing.get_context("fork")
    together = context.Barrier(NUM_PROCESSES)
    results = context.SimpleQueue()

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        before, started = own_memory(), time.perf_counter()
        reading.start()
        start = time.perf_counter() - started
        seconds = []
        for _ in range(repeats + 1):  # the first warms up
            batches = rng.integers(0, count, (NUM_BATCHES, BATCH_SIZE))
            together.wait()
            began = time.perf_counter()
            for places in batches:
                reading.read(places)
            seconds.append(time.perf_counter() - began)
        memory = own_memory() - before
        some = np.random.default_rng(0).integers(0, count, BATCH_SIZE)
        digest = sha256(b"".join(array.tobytes() for array in reading.read(some))).hexdigest()
        results.put((statistics.median(seconds[1:]), start, memory, digest))

    processes = [context.Process(target=work, args=(seed,)) for seed in range(NUM_PROCESSES)]
    for process in processes:
        process.start()
    measured = [results.get() for _ in processes]
    for process in processes:
        process.join()
    *numbers, digests = zip(*measured, strict=True)
    seconds, start, memory = map(statistics.mean, numbers)
    rate = NUM_PROCESSES * NUM_BATCHES * BATCH_SIZE / seconds
    return Measured(rate, start, memory, " ".join(sorted(set(digests))))


def build_readings(folder: Path, count: int) -> dict[str, Reading]:
    """By name; ours share one reader and the rows of all keys."""
    reader = TargetReader(str(folder / "ours"))
    started = time.perf_counter()
    rows = reader.locate(name_of(place) for place in range(count))
    print(f"{count:,} keys looked up once in {time.perf_counter() - started:.1f} s.\n")
    shared = torch.from_numpy(rows).share_memory_()
    return {
        "plain": Plain(folder / "plain"),
        "ours, rows known": Ours(reader, shared),
        "ours, keys looked up": LookedUp(reader, shared),
    }


def check_agreement(found: dict[str, Measured]) -> None:
    """All must read the same: else their times do not compare."""
    expected = next(iter(found.values())).digest
    for name, each in found.items():
        if each.digest != expected:
            raise SystemExit(f"{name} reads something else: their times do not compare.")


def describe_codec(repeats: int) -> str:
    """Bytes and decoding of what a training stores."""
    codec = LabelCodec(TOP_K, NUM_CLASSES)
    records = torch.randint(0, 256, (BATCH_SIZE, codec.num_bytes), dtype=torch.uint8)
    seconds = statistics.median(
        take_turns({"decode": lambda: codec.decode(records)}, repeats)["decode"]
    )
    return (
        f"A coded record has {codec.num_bytes} bytes; decoding {BATCH_SIZE} takes "
        f"{1000 * seconds:.1f} ms on {torch.get_num_threads()} threads of the CPU."
    )


def main(repeats: int) -> None:
    """Print a Markdown table of all numbers of records."""
    lines = [
        "| records | read | records/s | ratio | target | start, s | own memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for count in SIZES:
        with stores(count) as folder:
            readings = build_readings(folder, count)
            found = {name: measure(each, count, repeats) for name, each in readings.items()}
            check_agreement(found)
        plain = found["plain"].rate
        for name, each in found.items():
            ratio = f"{each.rate / plain:.2f} | {TARGET_RATIO}" if name != "plain" else "1 | "
            lines.append(
                f"| {count:,} | {name} | {each.rate:,.0f} | {ratio} | {each.start:.2f} | "
                f"{each.memory / 1e6:.1f} |"
            )
    print("\n".join(lines))
    print(f"\n{describe_codec(repeats)}", flush=True)
