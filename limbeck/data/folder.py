"""Images in a folder, with or without class sub-folders."""

import errno
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from limbeck.data.formats import (
    HEIF_ADVICE,
    HEIF_SUFFIXES,
    VIDEO_SUFFIXES,
    format_of,
    is_image_name,
)
from limbeck.data.source import MAX_IMAGE_BYTES, BadImage, NamedSource, RawImage, no_images
from limbeck.errors import UserError
from limbeck.files import open_file, read_file, reason_of

log = logging.getLogger("limbeck")

# fmt: off
# The words for splits in names of files and folders, as the hub has them.
SPLIT_OF = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}
# Thumbnails, snapshots and recycle bins of network drives, zips and systems, in small letters.
OTHER_PROGRAMS = frozenset({
    "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "__macosx",
    "$recycle.bin", "recycler", "system volume information", "lost+found",
})
# fmt: on
TOO_LONG = "a path that is too long"
NUM_NAMED = 3  # of what is left out
NUM_SNIFFED = 20  # files without a suffix whose first bytes are looked at


class FilesSource(NamedSource):
    """Image files below ``root``; keys are their paths relative to it, with forward slashes."""

    def __init__(
        self,
        root: Path,
        keys: Sequence[str],
        classes: tuple[str, ...],
        labels: Sequence[int] | None,
    ) -> None:
        super().__init__(keys, classes, labels)
        self.root = root

    def read(self, index: int) -> RawImage:
        return RawImage(read_image(self.root / self._keys[index]), self.label(index))


class FolderSource(FilesSource):
    """All image files below ``root``.

    The first-level sub-folders are classes if every image lies in one and there are at least two.
    Hidden files and folders and those of other programs (``OTHER_PROGRAMS``) are left out; links
    are followed, but never in a circle. ``notes`` says what is left out, and why there are no
    labels where there might be.
    """

    def __init__(self, root: Path) -> None:
        passed: Counter[str] = Counter()
        files = list(walk(root, passed))
        images = sorted(file for file in files if is_image_name(file))
        others = [file for file in files if not is_image_name(file)]
        left_out = [*_note_others(root, others), *note_passed(passed)]
        if not images:
            raise no_images(str(root), left_out)
        tops = {key.partition("/")[0] if "/" in key else "" for key in images}
        classes = tuple(sorted(tops)) if "" not in tops and len(tops) > 1 else ()
        _refuse_splits(root, classes)
        label_of = {name: label for label, name in enumerate(classes)}
        labels = [label_of[key.partition("/")[0]] for key in images] if classes else None
        super().__init__(root, images, classes, labels)
        self.notes = (*_note_labels(root, images, tops), *left_out)
        for note in self.notes:
            log.info("%s", note)


def read_image(file: Path) -> bytes:
    """The bytes of an image file; raises BadImage for what is no regular one, or too large."""
    try:
        return read_file(file, MAX_IMAGE_BYTES)
    except OSError as error:
        raise BadImage(f"the file can't be read: {reason_of(error)}") from error


def open_folder(root: str, options: object, split: str) -> FolderSource:
    """The images of a local folder; there are no options and no splits."""
    del options, split
    return FolderSource(Path(root))


def is_of_other_programs(parts: Iterable[str]) -> bool:
    """Whether a path of these ``parts`` is hidden, or made by other programs for their own use."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part.lower() in OTHER_PROGRAMS
        for part in parts
    )


def walk(folder: Path, passed: Counter[str] | None = None) -> Iterator[str]:
    """Paths of all files below ``folder``, relative to it, however deep.

    What is hidden, of other programs, or of too long a path is passed over, and its names counted
    in ``passed``.
    """
    passed = Counter() if passed is None else passed
    stack, ancestors = [("", _list(folder))], [_identity(folder)]
    while stack:
        prefix, entries = stack[-1]
        if not entries:
            stack.pop()
            ancestors.pop()
            continue
        entry = entries.pop()
        if is_of_other_programs([entry.name]):
            passed[entry.name] += 1
        elif not _is_folder(entry):
            yield prefix + entry.name
        else:
            try:
                identity = _identity(entry.path)
                if identity not in ancestors:
                    stack.append((f"{prefix}{entry.name}/", _list(entry.path)))
                    ancestors.append(identity)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                passed[TOO_LONG] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; if it has an image's name, it is a bad one
        return False


def _identity(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _list(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise
        raise UserError(
            f"Can't list the folder {folder}: {error.strerror}; correct its permissions or move it."
        ) from error


def _refuse_splits(root: Path, classes: tuple[str, ...]) -> None:
    if not classes or not all(name.lower() in SPLIT_OF for name in classes):
        return
    train = next((name for name in classes if SPLIT_OF[name.lower()] == "train"), classes[0])
    held_out = next(name for name in reversed(classes) if name != train)
    raise UserError(
        f"The folders in {root} are splits ({', '.join(classes)}), not classes; "
        f"pass {root / train} as --data and {root / held_out} as --data.eval-root."
    )


def _note_labels(root: Path, images: Sequence[str], tops: set[str]) -> Iterator[str]:
    """Why folders that might have been meant as classes are none."""
    with os.scandir(root) as entries:
        folders = {entry.name for entry in entries if _is_folder(entry)}
    empty = sorted(name for name in folders - tops if not is_of_other_programs([name]))
    inner = tops - {""}
    if empty and inner:
        yield f"{named(empty, 'folder')} without images: no class of {root}."
    strays = [key for key in images if "/" not in key]
    if strays and inner:
        yield (
            f"{named(strays, 'image')} beside the folders of {root}: so these are no classes, and "
            "the images have no labels; move what does not belong there away."
        )
    elif len(inner) == 1:
        (top,) = inner
        below = {key.split("/", 2)[1] if key.count("/") > 1 else "" for key in images}
        if "" not in below and len(below) > 1:
            yield (
                f"All images lie in the one folder {top}, so they have no labels; for its folders "
                f"({_listed(sorted(below))}) as classes pass {root / top} as --data."
            )
        else:
            yield f"All images lie in the one folder {top}: one class is none; no labels."


def _note_others(root: Path, files: Sequence[str]) -> Iterator[str]:
    """What is left out, by kind, with what may be done about it."""
    kinds: dict[str, list[str]] = {"heif": [], "video": [], "bare": [], "other": []}
    for file in files:
        suffix = PurePosixPath(file).suffix.lower()
        is_heif, is_video = suffix in HEIF_SUFFIXES, suffix in VIDEO_SUFFIXES
        kind = "heif" if is_heif else "video" if is_video else "other" if suffix else "bare"
        kinds[kind].append(file)
    bare = sorted(kinds["bare"])
    formats = {_format_of_file(root / file) for file in bare[:NUM_SNIFFED]} - {None}
    if kinds["heif"]:
        yield f"{by_suffix(kinds['heif'], 'HEIC photo')} left out; to use them: {HEIF_ADVICE}."
    if kinds["video"]:
        yield (
            f"{by_suffix(kinds['video'], 'video')} left out; to use their frames: "
            "ffmpeg -i VIDEO -vf fps=1 FOLDER/%06d.jpg."
        )
    if formats:
        yield (
            f"{named(bare, 'file')} without a suffix left out, among them images "
            f"({_listed(sorted(map(str, formats)))}); to use these, give them one, such as .jpg."
        )
    others = kinds["other"] + ([] if formats else bare)
    if others:
        yield f"{by_suffix(others, 'other file')} left out."


def note_passed(passed: Counter[str]) -> Iterator[str]:
    """What ``walk`` passed over, as sentences."""
    passed = passed.copy()
    num_long = passed.pop(TOO_LONG, 0)
    if num_long:
        yield (
            f"{num_long} folder{'s' * (num_long > 1)} of a path that is too long for this system "
            "left out; to use what is in there, move it up."
        )
    if passed:
        shown = ", ".join(f"{name} {count}" for name, count in passed.most_common(NUM_NAMED))
        more = ", ..." if len(passed) > NUM_NAMED else ""
        yield (
            f"{passed.total()} hidden files and folders, or those of other programs, left out "
            f"({shown}{more})."
        )


def _format_of_file(file: Path) -> str | None:
    try:
        with open_file(file) as stream:
            return format_of(stream.read(16))
    except OSError:
        return None


def by_suffix(files: Sequence[str], what: str) -> str:
    """``3 videos (.mov 2, .avi 1)``."""
    counts = Counter(PurePosixPath(file).suffix.lower() or "no suffix" for file in files)
    shown = ", ".join(f"{suffix} {count}" for suffix, count in counts.most_common(NUM_NAMED))
    return f"{len(files)} {what}{'s' * (len(files) > 1)} ({shown})"


def named(names: Sequence[str], what: str) -> str:
    """``2 images (a.jpg, b.jpg)``."""
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({_listed(names)})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")
