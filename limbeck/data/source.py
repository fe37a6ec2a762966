"""The contract of every source of images, and the two sources that are made of others."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


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


class Subset(Source):
    """Some samples of a source, in the given order."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = list(indices)
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        return self.source.key(self.indices[index])

    def label(self, index: int) -> int | None:
        return self.source.label(self.indices[index])

    def read(self, index: int) -> RawImage:
        return self.source.read(self.indices[index])
