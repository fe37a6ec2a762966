"""Which image a key of TinyViT's released layout (arXiv 2207.10666) stands for.

A key is the image's name, as far as its data set had one, or else its position in the listing:
and a folder is listed otherwise than the same images in a tar.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

from limbeck.data.source import Source
from limbeck.errors import UserError

NAMES: dict[str, Callable[[str], str]] = {
    "the name in the source": lambda key: key,
    "that name without its suffix": lambda key: str(PurePosixPath(key).with_suffix("")),
    "the file's name": lambda key: PurePosixPath(key).name,
    "the file's name without its suffix": lambda key: PurePosixPath(key).stem,
}
"""What of a source's key may be a key there; the first that is found is taken for all."""


def indices_by_name(source: Source, keys: Iterable[str]) -> dict[str, int]:
    """Key -> index in ``source`` of the ``keys`` that name one of its images.

    Raises UserError where none does, or where one names two.
    """
    wanted = set(keys)
    for what, name_of in NAMES.items():
        found: dict[str, int] = {}
        for index in range(len(source)):
            name = name_of(source.key(index))
            if name not in wanted:
                continue
            if name in found:
                raise UserError(
                    f"The key '{name}' is {what} of two images, {source.key(found[name])} and "
                    f"{source.key(index)}, so whose soft labels it has can't be told."
                )
            found[name] = index
        if found:
            return found
    raise UserError(
        f"No key (such as '{min(wanted)}') names an image (such as '{source.key(0)}'); name the "
        "images that the soft labels were stored for."
    )


def indices_by_position(source: Source, keys: Iterable[str], listing: str) -> dict[str, int]:
    """Key -> index in ``source`` of keys that are positions in a ``LISTINGS``, 0..n - 1.

    One image more or less would shift all that follow. Raises UserError unless there is one key
    for each.
    """
    place = LISTINGS[listing]
    order = sorted(range(len(source)), key=lambda index: place(source.key(index)))
    found = {str(position): index for position, index in enumerate(order)}
    wanted = set(keys)
    if wanted != found.keys():
        strange = min(wanted - found.keys(), default=None)
        raise UserError(
            f"There are {len(source)} images and {len(wanted)} keys"
            + (f", one of them '{strange}'" if strange else "")
            + "; as positions these would have to be 0 and so on, one for each image, so these are "
            "not the images of that listing."
        )
    return found


def _in_folder(key: str) -> tuple[str, str, str]:
    folder, _, name = key.rpartition("/")
    return folder.partition("/")[0], folder, name


def _in_tar(key: str) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", key.lower())]


LISTINGS: dict[str, Callable[[str], Any]] = {"folder": _in_folder, "tar": _in_tar}
"""What a key is sorted by: in torchvision's listing of a folder class by class, folder by folder,
by name (x_10 before x_2); in the released reader's of a tar the whole path, numbers by their value
and small and capital letters alike (x_2 before x_10)."""
