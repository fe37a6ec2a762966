"""The contract of every source of images, and the sources that are made of others."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from limbeck.errors import UserError
from limbeck.files import MIB

log = logging.getLogger("limbeck")

# Of one encoded image: what the default limit of pixels has in 16-bit colours, and a header.
MAX_IMAGE_BYTES = 6 * 89_478_485 + MIB
MAX_CLASSES = 100_000  # A larger number is an identifier, not a class index.


class BadImage(Exception):
    """One image can't be used; the message is the reason, for ``skipped.jsonl``."""


@dataclass(frozen=True)
class RawImage:
    """One undecoded sample: ``data`` the file's bytes, ``label`` a class index or None."""

    data: bytes
    label: int | None


class Source(ABC):
    """A finite, random-access collection of images with names.

    Keys are paths or record names, unique, and independent of the other samples. A source is
    cheap to send to a worker process and opens its files there.
    """

    classes: tuple[str, ...]
    """Class names in label order; empty for unlabelled data."""
    notes: tuple[str, ...] = ()
    """What was passed over in opening it, and the like: a sentence each, logged once."""

    @abstractmethod
    def __len__(self) -> int:
        """How many samples."""

    @abstractmethod
    def key(self, index: int) -> str:
        """The name of a sample."""

    @abstractmethod
    def label(self, index: int) -> int | None:
        """The class index of a sample, without reading its image; None where unlabelled."""

    @abstractmethod
    def read(self, index: int) -> RawImage:
        """Read a sample's bytes; raises BadImage if that fails."""


def name_digest(text: str, size: int) -> bytes:
    """BLAKE2b of a name, of so many bytes; it need not be valid UTF-8, as names of old disks."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def sum_of_digests(texts: Iterable[str]) -> str:
    """32 hex digits of texts, whatever their order."""
    total = sum(int.from_bytes(name_digest(text, 16), "big") for text in texts)
    return f"{total % 2**128:032x}"


class Names(Sequence[str]):
    """Many strings in one block of memory.

    A list of a million keys would be copied into every worker: reading a Python object writes its
    reference count, and a forked process gets its own copy of what is written.
    """

    def __init__(self, names: Sequence[str]) -> None:
        # "surrogatepass": file names need not be valid UTF-8.
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._ends[index], self._ends[index + 1]
        return self._bytes[start:end].decode("utf-8", "surrogatepass")


class NamedSource(Source):
    """One whose names and labels (None of unlabelled data) are known when it is opened."""

    def __init__(
        self,
        keys: Sequence[str],
        classes: tuple[str, ...],
        labels: Sequence[int] | np.ndarray | None,
    ) -> None:
        self._keys, self.classes = Names(keys), classes
        self._labels = None if labels is None else np.asarray(labels)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def label(self, index: int) -> int | None:
        return None if self._labels is None else int(self._labels[index])


class Subset(Source):
    """Some samples of a source, in the given order."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        return self.source.key(int(self.indices[index]))

    def label(self, index: int) -> int | None:
        return self.source.label(int(self.indices[index]))

    def read(self, index: int) -> RawImage:
        return self.source.read(int(self.indices[index]))


class Renumbered(Source):
    """A source with its classes in the order of others: its class ``i`` is ``new[i]`` of them."""

    def __init__(self, source: Source, classes: tuple[str, ...], new: Sequence[int]) -> None:
        self.source, self.classes, self.notes = source, classes, source.notes
        self._new = np.asarray(new, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def label(self, index: int) -> int | None:
        label = self.source.label(index)
        return None if label is None else int(self._new[label])

    def read(self, index: int) -> RawImage:
        return RawImage(self.source.read(index).data, self.label(index))


def no_images(root: str, notes: Sequence[str] = ()) -> UserError:
    """The error for a place that holds no images at all; ``notes`` say what it holds."""
    return UserError(
        f"There are no images in {root}; --data.root takes a folder of image files, .parquet or "
        f".arrow files, .tar shards, or hf:NAME.{''.join(f' {note}' for note in notes)}"
    )


def plain_label(value: object) -> int | str | None:
    """A label as it is stored as an index or a word: truth values are words, whole floats indices.

    None for anything else.
    """
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) else None


def label_table(
    values: Sequence[int | str | None], column: str | None = None
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Class names and the class indices (int64) of raw labels.

    Integers are class indices; words are classes in alphabetical order. Where a label is missing,
    negative or beyond MAX_CLASSES, the whole source counts as unlabelled, () and None; but raises
    UserError if ``column`` was asked for by that name.
    """
    num_missing = sum(not is_label(value) for value in values)
    if num_missing and column is not None:
        raise UserError(
            f"{num_missing} of {len(values)} rows of the column '{column}' hold no label (a word, "
            f"or an index below {MAX_CLASSES}); remove them or pass another --data.label-column."
        )
    if 0 < num_missing < len(values):
        log.warning(
            "%d of %d labels are missing or no class numbers, so the data is taken as unlabelled.",
            num_missing,
            len(values),
        )
    if num_missing or not values:
        return (), None
    if all(isinstance(value, str) for value in values):
        names, labels = np.unique(np.array(values, dtype=object), return_inverse=True)
        return tuple(names), labels.astype(np.int64)
    if not all(isinstance(value, int) for value in values):
        raise UserError("The labels are partly numbers and partly words; use one of the two.")
    labels = np.array(values, dtype=np.int64)
    return tuple(str(index) for index in range(labels.max() + 1)), labels


def is_label(value: int | str | None) -> bool:
    """Whether a raw label is a word or may be a class index."""
    return 0 <= value < MAX_CLASSES if isinstance(value, int) else value is not None


class Chain(Source):
    """Several sources one after the other; keys of the second and later say which: "2:KEY"."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.classes = self.sources[0].classes

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def _find(self, index: int) -> tuple[int, int]:
        """(place of the source, index in it)."""
        for place, source in enumerate(self.sources):
            if index < len(source):
                return place, index
            index -= len(source)
        raise IndexError(index)

    def key(self, index: int) -> str:
        place, inner = self._find(index)
        key = self.sources[place].key(inner)
        return f"{place + 1}:{key}" if place else key

    def label(self, index: int) -> int | None:
        place, inner = self._find(index)
        return self.sources[place].label(inner)

    def read(self, index: int) -> RawImage:
        place, inner = self._find(index)
        return self.sources[place].read(inner)
