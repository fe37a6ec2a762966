"""Tar shards in the WebDataset convention: members that share a name up to the first dot.

Each shard is indexed once, by its members' offsets; a sample is then read with one seek (or one
range request), so the shards can be shuffled like any other source.
"""

import logging
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from limbeck.data.folder import is_of_other_programs
from limbeck.data.formats import is_image_name
from limbeck.data.source import (
    MAX_IMAGE_BYTES,
    BadImage,
    NamedSource,
    RawImage,
    label_table,
    no_images,
    plain_label,
)
from limbeck.data.splits import (
    PACKED_SUFFIXES,
    choose_split,
    expand_braces,
    find_files,
    is_packed_name,
    is_pattern,
)
from limbeck.documents import parse_json
from limbeck.errors import UserError
from limbeck.files import MIB, open_file, printable, reason_of

log = logging.getLogger("limbeck")

JSON_LABEL_NAMES = ("label", "cls", "class", "class_id")
MAX_LABEL_BYTES = MIB
PACKED_BEGIN = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip
NUM_SUFFIXES = 3  # named for the members that are left out
MAX_LINKS = 40  # after each other, as a Linux kernel follows them


class TarSource(NamedSource):
    """The images of .tar files; a key is ``SHARD/MEMBER``, the shard's file name and the member's.

    ``shards`` are local paths or addresses that fsspec knows. Labels come from ``.cls`` members (a
    class index or word) or ``.json`` members (the entry "label", "cls", "class" or "class_id"), and
    count only if every image has one. What is passed over is told. ``beside``: parts of a sample
    that are wanted too, such as seg.png; ``read_beside`` gives the first that a sample has.
    """

    def __init__(self, shards: list[str], beside: Sequence[str] = ()) -> None:
        self.shards = shards
        told = _LeftOut()
        indexed = [_index_shard(shard, told) for shard in shards]
        # What accompanies images ("seg.png" of masks) is none itself where its image is missing.
        parts = {part for one in indexed for part in one.parts()}
        # One row per image: shard, offset and size in bytes. No file stays open, so the source
        # can be forked or pickled; opening a file again costs far less than decoding an image.
        places: list[tuple[int, int, int]] = []
        beside_places: list[tuple[int, int, int]] = []
        keys: list[str] = []
        raw_labels: list[int | str | None] = []
        for number, (shard, one) in enumerate(zip(shards, indexed, strict=True)):
            shard_name = shard.rsplit("/", 1)[-1] if "://" in shard else Path(shard).name
            found = {(image.sample, image.part.lower()): image for image in one.images}
            for image in one.chosen(parts, told, set(beside)):
                keys.append(f"{shard_name}/{image.name}")
                places.append((number, image.offset, image.size))
                raw_labels.append(one.label_of(image))
                other = next((o for p in beside if (o := found.get((image.sample, p)))), None)
                beside_places.append((number, other.offset, other.size) if other else (0, 0, -1))
        self.notes = tuple(told.tell())
        if not keys:
            raise no_images(", ".join(shards[:3]))
        if len(set(keys)) < len(keys):
            raise UserError(
                f"Two images of the shards {shards[0]} to {shards[-1]} have the same key; "
                "give the shards different file names."
            )
        super().__init__(keys, *label_table(raw_labels))
        self._places, self._beside = np.array(places), np.array(beside_places)

    def read(self, index: int) -> RawImage:
        return RawImage(self._read(self._places[index]), self.label(index))

    def has_beside(self, index: int) -> bool:
        """Whether the sample has one of the parts ``beside``."""
        return self.size_beside(index) >= 0

    def size_beside(self, index: int) -> int:
        """The bytes of that part; -1 without."""
        return int(self._beside[index, 2])

    def read_beside(self, index: int) -> bytes:
        """The bytes of that part; raises BadImage as ``read``."""
        return self._read(self._beside[index])

    def _read(self, place: np.ndarray) -> bytes:
        number, offset, size = place.tolist()
        if size > MAX_IMAGE_BYTES:
            raise BadImage(f"it has {size:,} bytes, over the limit of {MAX_IMAGE_BYTES:,}")
        try:
            return _read_range(self.shards[number], offset, size)
        except Exception as error:  # Each of fsspec's stores has errors of its own.
            raise BadImage(f"{self.shards[number]} can't be read: {error}") from error


def open_shards(root: str, options: object, split: str, beside: Sequence[str] = ()) -> TarSource:
    """Shards by a file, a folder, an address, or a pattern such as ``a-{000..009}.tar``.

    ``split`` chooses among the files of a folder that are of several.
    """
    del options
    if "://" in root:
        return TarSource(expand_braces(root), beside)
    notes: list[str] = []
    found = find_files(root, lambda name: name.lower().endswith((".tar", *PACKED_SUFFIXES)), notes)
    packed = [file for file, _ in found if is_packed_name(file.name)]
    files = [(file, name) for file, name in found if file not in packed]
    if packed:
        sentence = f"{len(packed)} compressed .tar files in {root} are left out ({packed[0].name})"
        if not files:
            raise UserError(f"{sentence}; unpack them to .tar first, their images can't be sought.")
        notes.append(f"{sentence}; unpack them to .tar first.")
        log.warning("%s", notes[-1])
    if Path(root).is_dir() or (is_pattern(root) and "{" not in root):
        files = choose_split(files, split, root, notes)
    shards = [str(file) for file, _ in files]
    missing = [shard for shard in shards if not Path(shard).exists()]
    if missing:
        raise UserError(
            f"There is no shard {missing[0]} ({len(missing)} of {len(shards)} of {root} are "
            "missing); correct the pattern in --data.root."
        )
    source = TarSource(sorted(shards) if Path(root).is_dir() else shards, beside)
    source.notes = (*notes, *source.notes)
    return source


class _Image(NamedTuple):
    """A member that is an image by its suffix: ``sample`` up to the first dot, ``part`` after."""

    name: str
    sample: str
    part: str
    offset: int
    size: int

    @property
    def is_plain(self) -> bool:
        return "." not in self.part


class _LeftOut:
    """How many members are passed over, by the reason, with an example of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.others: Counter[str] = Counter()
        """Members that are no images, by their suffix."""

    def note(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        self.examples.setdefault(reason, name)

    def tell(self) -> list[str]:
        """Log what is left out; the same as sentences."""
        notes = []
        if self.others:
            common = self.others.most_common(NUM_SUFFIXES)
            shown = ", ".join(f"{suffix} {count}" for suffix, count in common)
            notes.append(
                f"{self.others.total()} other members of the shards are left out ({shown})."
            )
            log.info("%s", notes[-1])
        for reason, count in self.counts.items():
            example = printable(self.examples[reason])
            notes.append(f"{count} members of the shards are left out: {reason} ({example}).")
            log.warning("%s", notes[-1])
        return notes


@dataclass
class _Shard:
    """What the members of one shard are, and where the images among them lie."""

    images: list[_Image] = field(default_factory=list)
    labels: dict[str, int | str] = field(default_factory=dict)
    """By a member's name without its last suffix."""

    def parts(self) -> set[str]:
        """What stands behind the first dot of images that lie beside the one of their sample."""
        plain = {image.sample for image in self.images if image.is_plain}
        return {image.part for image in self.images if image.sample in plain}

    def chosen(self, parts: set[str], told: _LeftOut, beside: set[str]) -> list[_Image]:
        """The images that are samples, one of each.

        "0.jpg" is the sample's image; "0.seg.png" is something else that belongs to it. Where no
        image has the plain name, a single one is the sample's all the same, and numbers after a dot
        are no parts of a sample but of names ("shot.0001.jpg").
        """
        sizes = Counter(image.sample for image in self.images)
        first: dict[str, _Image] = {}
        for image in self.images:
            if image.is_plain:
                first.setdefault(image.sample, image)
        chosen = []
        for image in self.images:
            if image.sample in first:
                if image is first[image.sample]:
                    chosen.append(image)
                elif image.is_plain:
                    told.note("a sample has one image, and it is an earlier one", image.name)
                elif image.part.lower() not in beside:
                    told.note("by the dots in their names they belong to an image", image.name)
                continue
            is_alone = sizes[image.sample] == 1 and image.part not in parts
            if is_alone or re.fullmatch(r"[\d.]+\.\w+", image.part):
                chosen.append(image)
            else:
                told.note(
                    "by the dots in their names they are parts of a sample, and none is called its "
                    "image; rename the one that is meant to the name before the first dot",
                    image.name,
                )
        return chosen

    def label_of(self, image: _Image) -> int | str | None:
        label = self.labels.get(_without_suffix(image.name))
        return self.labels.get(image.sample) if label is None else label


def _index_shard(shard: str, told: _LeftOut) -> _Shard:
    found = _Shard()
    places: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    try:
        with _open_shard(shard) as file:
            _refuse_packed(file)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if member.size < 0:
                        raise tarfile.ReadError(f"the member {member.name} has a size below 0")
                    if not member.isdir():
                        _note_member(member, archive, found, told, places, links)
                _check_end(file, archive.offset)
    # A stranger's headers provoke whatever tarfile has no check for.
    except (
        tarfile.TarError, OSError, ValueError, ImportError, RecursionError, OverflowError,
    ) as error:  # fmt: skip
        reason = printable(reason_of(error))
        raise UserError(
            f"Can't read the shard {shard} as an uncompressed .tar file: {reason}; correct the "
            "address, unpack it first if it is compressed, or copy it again."
        ) from error
    _follow(links, places, told)
    for name, place in places.items():
        folder, _, base = name.rpartition("/")
        stem, _, part = base.partition(".")
        if is_image_name(f"x.{part}"):
            if not stem:
                told.note("they are hidden", name)
            elif is_of_other_programs(folder.split("/")):
                told.note("their folders are hidden or of other programs", name)
            else:
                found.images.append(_Image(name, f"{folder}/{stem}", part, *place))
    return found


def _note_member(
    member: tarfile.TarInfo,
    archive: tarfile.TarFile,
    found: _Shard,
    told: _LeftOut,
    places: dict[str, tuple[int, int]],
    links: dict[str, str],
) -> None:
    name = member.name
    suffix = PurePosixPath(name).suffix.lower()
    if name in places:
        told.note("an earlier one has the same name", name)
    elif member.issym() or member.islnk():
        folder = posixpath.dirname(name) if member.issym() else ""
        links[name] = posixpath.normpath(posixpath.join(folder, member.linkname))
        places[name] = (0, 0)  # its place in the order
    elif member.issparse() or not member.isfile():
        told.note("they are sparse files or devices", name)
    else:
        places[name] = (member.offset_data, member.size)
        label = None
        if suffix in (".cls", ".json") and not posixpath.basename(name).startswith("."):
            if member.size > MAX_LABEL_BYTES:
                told.note(f"as labels they are larger than {MAX_LABEL_BYTES:,} B", name)
                return
            content = archive.extractfile(member)
            assert content is not None
            label = _parse_label(content.read(), suffix)
            stem = _without_suffix(name)
            if label is not None:
                found.labels[stem] = label
        if label is None and not is_image_name(name):
            told.others[suffix or "no suffix"] += 1


def _follow(links: dict[str, str], places: dict[str, tuple[int, int]], told: _LeftOut) -> None:
    """Give links the place of what they lead to within the shard; nothing else is looked at."""
    names = {posixpath.normpath(name): name for name in places}
    for name, target in links.items():
        for _ in range(MAX_LINKS):
            end = names.get(target, "")
            if end not in links:
                break
            target = links[end]
        if end and end not in links:
            places[name] = places[end]
        else:
            del places[name]
            names.pop(posixpath.normpath(name), None)
            told.note("they are links to what is not in the shard", name)


def _refuse_packed(file: Any) -> None:
    begin = file.read(6)
    file.seek(0)
    for magic, kind in PACKED_BEGIN.items():
        if begin.startswith(magic):
            raise tarfile.ReadError(f"it is compressed with {kind}")


def _check_end(file: Any, offset: int) -> None:
    """tarfile takes a damaged header, and a file that was cut between two members, for the end."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        raise tarfile.ReadError("it ends without a .tar file's end mark, so it was cut")
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError(f"it is damaged or cut at byte {offset:,}")
    if any(file.read(MIB)):
        raise tarfile.ReadError(
            f"something follows its end at byte {offset:,}; if .tar files were joined, keep them "
            "apart"
        )


def _parse_label(content: bytes, suffix: str) -> int | str | None:
    value: Any = content.decode("utf-8", "replace").strip()
    if suffix == ".json":
        try:
            fields = parse_json(content)
        except UserError:
            return None
        value = next((fields[name] for name in JSON_LABEL_NAMES if name in fields), None)
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):
        return int(value)
    return plain_label(value) if value != "" else None


def _without_suffix(name: str) -> str:
    """A sample's name as its images have it: the folder, a slash, and the base name."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.rpartition('.')[0]}"


def _open_shard(shard: str) -> Any:
    if "://" not in shard:
        return open_file(shard)
    import fsspec

    return fsspec.open(shard, "rb").open()


def _read_range(shard: str, offset: int, size: int) -> bytes:
    if "://" not in shard:
        with open_file(shard) as file:
            file.seek(offset)
            return file.read(size)
    import fsspec

    # Looked up on each read: a file system object must not cross a fork, and fsspec caches it.
    store, path = fsspec.core.url_to_fs(shard)
    data: bytes = store.cat_file(path, start=offset, end=offset + size)
    return data
