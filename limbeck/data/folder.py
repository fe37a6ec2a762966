"""Images in a folder, with or without class sub-folders."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from limbeck.data.source import BadImage, Names, RawImage, Source, no_images
from limbeck.errors import UserError

log = logging.getLogger("limbeck")

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2",
})
SPLIT_NAMES = frozenset({
    "train", "training", "val", "valid", "validation", "eval", "test", "testing",
})
# fmt: on
NUM_SUFFIXES = 3  # named for the files that are left out


class FolderSource(Source):
    """Image files below ``root``; keys are their paths relative to it, with forward slashes.

    The first-level sub-folders are classes if every image lies in one and there are at least two.
    Hidden files and folders are left out; links are followed, but never in a circle.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        files = list(walk(root))
        images = sorted(file for file in files if is_image_name(file))
        if not images:
            raise no_images(str(root))
        _tell_left_out([file for file in files if not is_image_name(file)])
        tops = {key.partition("/")[0] if "/" in key else "" for key in images}
        self.classes = tuple(sorted(tops)) if "" not in tops and len(tops) > 1 else ()
        _refuse_splits(root, self.classes)
        self._keys = Names(images)
        self._label_of = {name: label for label, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def label(self, index: int) -> int | None:
        return self._label_of.get(self._keys[index].partition("/")[0])

    def read(self, index: int) -> RawImage:
        try:
            data = (self.root / self._keys[index]).read_bytes()
        except OSError as error:
            raise BadImage(f"the file can't be read: {error.strerror}") from error
        return RawImage(data, self.label(index))


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its suffix."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def open_folder(root: str, options: object, split: str) -> FolderSource:
    """The images of a local folder; there are no options and no splits."""
    del options, split
    return FolderSource(Path(root))


def walk(folder: Path, prefix: str = "", ancestors: frozenset = frozenset()) -> Iterator[str]:
    """Paths of all files below ``folder``, relative to it, without what is hidden."""
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(
            f"Can't list the folder {folder}: {error.strerror}; correct its permissions or move it."
        ) from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from walk(Path(entry.path), f"{prefix}{entry.name}/", ancestors | {identity})
        else:
            yield prefix + entry.name


def _refuse_splits(root: Path, classes: tuple[str, ...]) -> None:
    if not classes or not all(name.lower() in SPLIT_NAMES for name in classes):
        return
    train = next((name for name in classes if name.lower().startswith("train")), classes[0])
    held_out = next(name for name in reversed(classes) if name != train)
    raise UserError(
        f"The folders in {root} are splits ({', '.join(classes)}), not classes; "
        f"pass {root / train} as --data and {root / held_out} as --data.eval-root."
    )


def _tell_left_out(files: list[str]) -> None:
    if not files:
        return
    suffixes = Counter(PurePosixPath(file).suffix.lower() or "no suffix" for file in files)
    named = ", ".join(f"{suffix} {count}" for suffix, count in suffixes.most_common(NUM_SUFFIXES))
    log.info("%d other files are left out (%s).", len(files), named)
