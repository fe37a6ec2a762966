"""What a reader of a layout is given, and what it hands over."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from limbeck.data.folder import SPLIT_OF, read_image, walk
from limbeck.data.scenes.class_table import ClassTable
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.pixels import RawMask, decode_mask
from limbeck.data.source import Names, Source
from limbeck.errors import UserError, did_you_mean
from limbeck.files import MIB, read_file, reason_of

MAX_LIST_BYTES = 64 * MIB


class Masks(ABC):
    """The raw masks of the images of a source, in their order; cheap to send to a worker."""

    @abstractmethod
    def read(self, index: int) -> RawMask:
        """Raises BadImage where there is none to be had."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where it comes from, for people."""

    def stamp(self, index: int) -> str:
        """What tells, without reading it, that a mask is another one; "" where nothing does."""
        del index
        return ""


class FileMasks(Masks):
    """Mask files below a root."""

    def __init__(self, root: Path, names: Sequence[str], max_image_pixels: int) -> None:
        self.root, self._names, self.max_image_pixels = root, Names(names), max_image_pixels

    def read(self, index: int) -> RawMask:
        return decode_mask(read_image(self.root / self._names[index]), self.max_image_pixels)

    def name(self, index: int) -> str:
        """The file's name below the root."""
        return self._names[index]

    def stamp(self, index: int) -> str:
        """The file's size: its time is another one in every copy."""
        try:
            return str((self.root / self._names[index]).stat().st_size)
        except OSError:
            return ""  # that it is gone is met in reading it


@dataclass(frozen=True)
class Found:
    """Images with their masks, and what the layout itself says of the classes.

    ``table``: the names that come with it; ``is_certain``: masks need not be looked at to know what
    they mean. ``has_background``: whether 0 is a class. ``problems``: (key, sentence) of images
    that were left out.
    """

    images: Source
    masks: Masks
    layout: str
    table: ClassTable | None = None
    is_certain: bool = False
    has_background: bool = True
    problems: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()


@dataclass
class Place:
    """A folder of scenes; ``names`` of all its files are listed once, when they are needed."""

    root: Path
    options: SceneOptions
    split: str
    notes: list[str] = field(default_factory=list)
    json_name: str | None = None
    """The one JSON file that was asked for."""
    yaml_name: str | None = None
    """Likewise the one YAML file."""

    @cached_property
    def names(self) -> list[str]:
        """All files below the root, relative to it."""
        return sorted(walk(self.root))

    @cached_property
    def json_names(self) -> list[str]:
        """The JSON files among them."""
        if self.json_name is not None:
            return [self.json_name]
        return [name for name in self.names if name.lower().endswith(".json")]

    def choose(self, splits: Iterable[str | None]) -> Callable[[str | None], bool]:
        """Which of the ``splits`` that files are of are taken; all where they are of one."""
        counts = Counter(splits)
        found = sorted(split for split in counts if split)
        if len(found) < 2:
            return lambda split: True
        wanted = {
            SPLIT_OF.get(word.strip().lower(), word.strip()) for word in self.split.split("+")
        }
        for word in wanted - set(found):
            raise UserError(
                f"{self.root} has no split '{word}', but {', '.join(found)}."
                f"{did_you_mean(word, found)} Choose with --data.split (of what is scored on: "
                "--data.eval-split)."
            )
        others = f" {counts[None]} of no split left out." if counts[None] else ""
        self.notes.append(f"{self.root} holds {', '.join(found)}: {self.split} is taken.{others}")
        return lambda split: split in wanted


def split_in(name: str) -> str | None:
    """The split that a file is of by its folders, the innermost that tells; None if none does."""
    # Of train_images train.
    parts = PurePosixPath(name.lower()).parent.parts
    folders = [re.sub("[_-]im(age|g)s?$", "", part) for part in parts]
    return next((SPLIT_OF[word] for word in reversed(folders) if word in SPLIT_OF), None)


def read_list(file: Path) -> list[str]:
    """The lines of a text that are not empty."""
    try:
        text = read_file(file, MAX_LIST_BYTES).decode("utf-8-sig", "replace")
    except OSError as error:
        raise UserError(f"Can't read {file}: {reason_of(error)}.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
