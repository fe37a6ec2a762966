"""Read and decode every image of a source once and report what is there, before a run begins."""

import logging
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from statistics import median
from typing import IO, NamedTuple

from torch.utils.data import Dataset

from limbeck.data.decode import decode_image, read_header
from limbeck.data.options import DataOptions
from limbeck.data.source import BadImage, Source
from limbeck.data.workers import run_workers
from limbeck.limits import num_cores

log = logging.getLogger("limbeck")

CHUNK = 16  # images per message of a worker
NUM_LISTED = 5  # damaged files named in the log
# libjpeg's words. It says "extraneous bytes" of many a sound photo, too.
DAMAGE = (b"premature end of data segment", b"bad Huffman code")


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some numbers; zeros if there are none."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class ScanReport:
    """What a source holds, as plain data.

    ``width`` and ``height`` are in pixels as stored, of readable images. ``formats`` and ``modes``
    are PIL's words with their counts. ``bad`` lists (key, reason), ``damaged`` the keys of readable
    images with garbage in them, ``duplicates`` groups of keys with exactly the same bytes,
    ``class_counts`` the images per class by name, readable or not (empty for unlabelled data).
    """

    num_images: int
    num_readable: int
    total_bytes: int
    width: Spread
    height: Spread
    formats: dict[str, int]
    modes: dict[str, int]
    bad: tuple[tuple[str, str], ...]
    damaged: tuple[str, ...]
    duplicates: tuple[tuple[str, ...], ...]
    class_counts: dict[str, int]


def scan(
    source: Source,
    options: DataOptions,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScanReport:
    """Decode every image of ``source`` in ``num_workers`` processes (one per core if None).

    ``progress`` is told (images done, images in all) from time to time. Damaged images, which are
    decoded to garbage in part, are logged.
    """
    starts = range(0, len(source), CHUNK)
    if num_workers is None:
        num_workers = num_cores()
    chunks = [range(start, min(start + CHUNK, len(source))) for start in starts]
    seen: list[_Seen] = []
    dataset = _Examine(source, options.max_image_pixels)
    # A source of one chunk is read sooner than a process is started.
    for part in run_workers(dataset, chunks, min(num_workers, len(chunks) - 1)):
        seen += part
        if progress is not None:
            progress(len(seen), len(source))
    report = _summarise(seen, source)
    if report.damaged:
        log.warning(
            "%d readable images have damaged data and are partly garbage; replace them: %s.",
            len(report.damaged),
            ", ".join(report.damaged[:NUM_LISTED]),
        )
    return report


class _Seen(NamedTuple):
    key: str
    digest: bytes
    num_bytes: int
    width: int
    height: int
    format: str
    mode: str
    reason: str  # "" if the image is good
    is_damaged: bool = False


class _Examine(Dataset[list[_Seen]]):
    def __init__(self, source: Source, max_image_pixels: int) -> None:
        self.source = source
        self.max_image_pixels = max_image_pixels

    def __getitem__(self, indices: range) -> list[_Seen]:
        return [self._examine(index) for index in indices]

    def _examine(self, index: int) -> _Seen:
        key, data = self.source.key(index), b""
        try:
            data = self.source.read(index).data
            header = read_header(data, self.max_image_pixels)
            with _standard_error() as said:
                decode_image(data, self.max_image_pixels)
        except BadImage as error:
            return _Seen(key, _digest(data), len(data), 0, 0, "", "", str(error))
        size = (header.width, header.height)
        is_damaged = any(words in said for words in DAMAGE)
        return _Seen(
            key, _digest(data), len(data), *size, header.format, header.mode, "", is_damaged
        )


@contextmanager
def _standard_error() -> Iterator[bytearray]:
    """What is written to file descriptor 2 meanwhile: libjpeg tells of damage nowhere else."""
    said, kept = bytearray(), os.dup(2)
    with _nameless_file() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said += file.read()


def _nameless_file() -> IO[bytes]:
    # In memory where that can be: the folder of temporary files may be gone, or full.
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("standard error"), "w+b")
    return tempfile.TemporaryFile()


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _summarise(seen: list[_Seen], source: Source) -> ScanReport:
    good = [one for one in seen if not one.reason]
    groups: dict[bytes, list[str]] = defaultdict(list)
    for one in good:
        groups[one.digest].append(one.key)
    labels = (source.label(index) for index in range(len(source)))
    counts = Counter(label for label in labels if label is not None)
    return ScanReport(
        num_images=len(seen),
        num_readable=len(good),
        total_bytes=sum(one.num_bytes for one in seen),
        width=_spread([one.width for one in good]),
        height=_spread([one.height for one in good]),
        formats=dict(Counter(one.format for one in good).most_common()),
        modes=dict(Counter(one.mode for one in good).most_common()),
        bad=tuple((one.key, one.reason) for one in seen if one.reason),
        damaged=tuple(one.key for one in seen if one.is_damaged),
        duplicates=tuple(tuple(keys) for keys in groups.values() if len(keys) > 1),
        class_counts={name: counts[label] for label, name in enumerate(source.classes)},
    )


def _spread(values: list[int]) -> Spread:
    if not values:
        return Spread(0, 0, 0)
    return Spread(min(values), median(values), max(values))
