"""Images in a folder, with or without class sub-folders."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from limbeck.data.source import BadImage, Names, RawImage, Source, no_images
from limbeck.errors import UserError

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2",
})
# fmt: on


class FolderSource(Source):
    """Image files below ``root``; keys are their paths relative to it, with forward slashes.

    The first-level sub-folders are classes if every image lies in one and there are at least two.
    Hidden files and folders are left out; links are followed, but never in a circle.
    ``num_other_files`` counts the files that are no images by their name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        files = list(_walk(root))
        images = sorted(file for file in files if is_image_name(file))
        self.num_other_files = len(files) - len(images)
        if not images:
            raise no_images(str(root))
        tops = {key.partition("/")[0] if "/" in key else "" for key in images}
        self.classes = tuple(sorted(tops)) if "" not in tops and len(tops) > 1 else ()
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


def _walk(folder: Path, prefix: str = "", ancestors: frozenset = frozenset()) -> Iterator[str]:
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
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", ancestors | {identity})
        else:
            yield prefix + entry.name
