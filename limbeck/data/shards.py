"""Tar shards in the WebDataset convention: members that share a name up to the first dot.

Each shard is indexed once, by its members' offsets; a sample is then read with one seek (or one
range request), so the shards can be shuffled like any other source.
"""

import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data.folder import walk
from limbeck.data.formats import is_image_name
from limbeck.data.source import BadImage, Names, RawImage, Source, label_table, no_images
from limbeck.errors import UserError

JSON_LABEL_NAMES = ("label", "cls", "class", "class_id")
BRACES = re.compile(r"\{([^{}]*)\}")


class TarSource(Source):
    """The images of .tar files; a key is ``SHARD/MEMBER``, the shard's file name and the member's.

    ``shards`` are local paths or addresses that fsspec knows. Labels come from ``.cls`` members (a
    class index or word) or ``.json`` members (the entry "label", "cls", "class" or "class_id"), and
    count only if every image has one.
    """

    def __init__(self, shards: list[str]) -> None:
        self.shards = shards
        # One row per image: shard, offset and size in bytes. No file stays open, so the source
        # can be forked or pickled; opening a file again costs far less than decoding an image.
        places: list[tuple[int, int, int]] = []
        keys: list[str] = []
        raw_labels: list[int | str | None] = []
        for number, shard in enumerate(shards):
            shard_name = shard.rsplit("/", 1)[-1]
            for name, offset, size, label in _index_shard(shard):
                keys.append(f"{shard_name}/{name}")
                places.append((number, offset, size))
                raw_labels.append(label)
        if not keys:
            raise no_images(", ".join(shards[:3]))
        if len(set(keys)) < len(keys):
            raise UserError(
                f"Two images of the shards {shards[0]} to {shards[-1]} have the same key; "
                "give the shards different file names."
            )
        self._keys, self._places = Names(keys), np.array(places)
        self.classes, self._labels = label_table(raw_labels)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def label(self, index: int) -> int | None:
        return None if self._labels is None else int(self._labels[index])

    def read(self, index: int) -> RawImage:
        number, offset, size = self._places[index].tolist()
        try:
            data = _read_range(self.shards[number], offset, size)
        except Exception as error:  # Each of fsspec's stores has errors of its own.
            raise BadImage(f"{self.shards[number]} can't be read: {error}") from error
        return RawImage(data, self.label(index))


def open_shards(root: str, options: object, split: str) -> TarSource:
    """Shards by a file, a folder, an address, or a pattern such as ``a-{000..009}.tar``."""
    del options, split
    if "://" not in root and Path(root).is_dir():
        return TarSource(sorted(str(Path(root, f)) for f in walk(Path(root)) if is_shard_name(f)))
    shards = expand_braces(root)
    missing = [shard for shard in shards if "://" not in shard and not Path(shard).is_file()]
    if missing:
        raise UserError(
            f"There is no shard {missing[0]} ({len(missing)} of {len(shards)} of {root} are "
            "missing); correct the pattern in --data.root."
        )
    return TarSource(shards)


def is_shard_name(name: str) -> bool:
    """Whether a file is a shard by its suffix."""
    return name.lower().endswith(".tar")


def expand_braces(pattern: str) -> list[str]:
    """``a-{00..02}.tar`` or ``a-{x,y}.tar`` as the list of names; several braces multiply."""
    choices = [
        _brace_choices(part) if is_brace else [part]
        for part, is_brace in zip(BRACES.split(pattern), itertools.cycle((False, True)))
    ]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _brace_choices(inner: str) -> list[str]:
    limits = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if not limits:
        return inner.split(",")
    first, last = limits.groups()
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _index_shard(shard: str) -> Iterator[tuple[str, int, int, int | str | None]]:
    """(member, offset, size, raw label) of each sample's image, in the order of the shard."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int | str | None] = {}
    try:
        with _open_shard(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if not member.isfile() or not stem:
                    continue
                sample = f"{folder}/{stem}"
                # "0.jpg" is the sample's image; "0.seg.png" is something else that belongs to it.
                if is_image_name(f"x.{extension}") and "." not in extension:
                    images.setdefault(sample, member)
                elif extension.lower() in ("cls", "json"):
                    content = archive.extractfile(member)
                    assert content is not None
                    label = _parse_label(content.read(), extension.lower())
                    labels[sample] = labels.get(sample) if label is None else label
    except (tarfile.TarError, OSError, ValueError, ImportError) as error:
        raise UserError(
            f"Can't read the shard {shard} as an uncompressed .tar file: {error}; "
            "correct the address, unpack it first if it is compressed, or copy it again."
        ) from error
    for sample, member in images.items():
        yield member.name, member.offset_data, member.size, labels.get(sample)


def _parse_label(content: bytes, extension: str) -> int | str | None:
    value: Any = content.decode("utf-8", "replace").strip()
    if extension == "json":
        try:
            fields = json.loads(value)
        except ValueError:
            return None
        if not isinstance(fields, dict):
            return None
        value = next((fields[name] for name in JSON_LABEL_NAMES if name in fields), None)
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _open_shard(shard: str) -> Any:
    if "://" not in shard:
        return open(shard, "rb")
    import fsspec

    return fsspec.open(shard, "rb").open()


def _read_range(shard: str, offset: int, size: int) -> bytes:
    if "://" not in shard:
        with open(shard, "rb") as file:
            file.seek(offset)
            return file.read(size)
    import fsspec

    # Looked up on each read: a file system object must not cross a fork, and fsspec caches it.
    store, path = fsspec.core.url_to_fs(shard)
    data: bytes = store.cat_file(path, start=offset, end=offset + size)
    return data
