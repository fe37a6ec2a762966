"""YOLO's data.yaml: folders or lists of images, and for each image a text with its objects.

A row is a class and a box (centre and size) or an outline, all in shares of the upright image.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from typing_extensions import TypedDict

from limbeck.data.folder import SPLIT_OF, FilesSource, named, walk
from limbeck.data.formats import is_image_name
from limbeck.data.scenes.class_table import find_table
from limbeck.data.scenes.layout import Place, read_list
from limbeck.data.scenes.objects.gather import FoundObjects, RawImage, RawObject, extent
from limbeck.data.scenes.objects.turning import size_of_file
from limbeck.data.source import BadImage
from limbeck.documents import read_yaml
from limbeck.errors import UserError
from limbeck.files import MIB, read_file, reason_of

MAX_TEXT_BYTES = 16 * MIB
MAX_CLASSES = 2**16
SLACK = 0.05  # of the image: what labels may stand out of it; beyond, they are no shares

Entry = str | list[str]


class _Yaml(TypedDict, total=False):
    path: str
    train: Entry
    val: Entry
    valid: Entry
    test: Entry
    names: list[str] | dict[str, str]
    nc: str
    kpt_shape: Entry


def find_yolo(place: Place) -> FoundObjects | None:
    """The images that a data.yaml names; those beside labels/ where only that is there."""
    found = _find_yaml(place)
    if found is None:
        return None
    name, about = found
    folder = (place.root / name).parent
    bases = [folder / about.get("path", ""), folder]
    entries: dict[str, list[str]] = {}
    for key, entry in about.items():
        if key in SPLIT_OF and entry:
            entries.setdefault(SPLIT_OF[key], []).extend(
                [entry] if isinstance(entry, str) else entry  # type: ignore[arg-type,list-item]
            )
    is_taken = place.choose(entries)
    files: list[str] = []
    splits: list[str] = []
    for split, parts in entries.items():
        places = [_resolved(part, bases) for part in parts]
        if None not in places:
            splits.append(split)
        if is_taken(split):
            for part, where in zip(parts, places, strict=True):
                if where is None:
                    raise UserError(
                        f"{place.root / name} names {part} for its split {split}, which is not "
                        "there; correct it, or its 'path'."
                    )
                files += _images(where, bases)
    files = list(dict.fromkeys(files))
    root = os.path.abspath(place.root)
    if not all(file.startswith(os.path.join(root, "")) for file in files):
        root = os.path.commonpath([os.path.dirname(file) for file in files])
    classes = _names(about, place.root / name)
    bare: list[str] = []
    most = 4 if "kpt_shape" in about else None  # key points come after the box
    pixels = place.options.max_image_pixels
    images, problems = _read_all(files, root, classes, pixels, bare, most)
    notes = [f"{named(sorted(bare), 'image')} without a text of labels: negatives."] if bare else []
    return FoundObjects(
        images=FilesSource(Path(root), [image.key for image in images], (), None),
        annotated=images,
        classes=classes,
        layout=f"YOLO's labels ({name})",
        problems=tuple(problems),
        notes=(*place.notes, *notes),
        splits=tuple(sorted(splits)),
        is_counted="names" not in about,
    )


def _find_yaml(place: Place) -> tuple[str, _Yaml] | None:
    """The file and what it says; made up of classes.txt where labels/ lies beside images/."""
    names = [name for name in place.names if name.lower().endswith((".yaml", ".yml"))]
    if place.yaml_name is not None:
        names = [place.yaml_name]
    found: dict[str, _Yaml] = {}
    for name in names:
        try:
            about = read_yaml(place.root / name, _Yaml)
        except UserError:  # of some other program
            if name == place.yaml_name or PurePosixPath(name).name == "data.yaml":
                raise
            continue
        if SPLIT_OF.keys() & about.keys() and {"names", "nc"} & about.keys():
            found[name] = about
    if len(found) > 1:
        raise UserError(
            f"{place.root} holds several sets of YOLO's layout ({', '.join(found)}); pass one of "
            "these files as --data.root."
        )
    if found:
        return next(iter(found.items()))
    table = find_table(place.root)
    if table and any(name.startswith("labels/") and name.endswith(".txt") for name in place.names):
        return Path(table.where).name, _Yaml(train="images", names=list(table.names))
    return None


def _names(about: _Yaml, file: Path) -> tuple[str, ...]:
    names = about.get("names")
    try:
        if names is None:
            return tuple(map(str, _numbers(int(about["nc"]))))
        if isinstance(names, list):
            return tuple(names)
        numbers = {int(number): name for number, name in names.items()}
        return tuple(numbers.get(number, str(number)) for number in _numbers(max(numbers) + 1))
    except ValueError as error:
        raise UserError(f"{file}: the numbers of its classes are none ({error}).") from error


def _numbers(count: int) -> range:
    if count > MAX_CLASSES:
        raise ValueError(f"{count:,} are too many")
    return range(count)


def _resolved(entry: str, bases: list[Path]) -> Path | None:
    """The folder or list that is meant: a path of another machine, and Roboflow's, which starts a
    folder too high, are tried without their beginnings."""
    parts = PurePosixPath(entry.replace("\\", "/")).parts
    tries = (base / Path(*parts[start:]) for start in range(len(parts)) for base in bases)
    return next((each for each in tries if each.exists()), None)


def _images(where: Path, bases: list[Path]) -> Iterator[str]:
    """The image files of a folder, or of a list, there or not."""
    if where.is_dir():
        names = sorted(filter(is_image_name, walk(where)))
        yield from (os.path.abspath(where / name) for name in names)
        return
    lines = read_list(where)
    starts = [where.parent, *bases]
    start = next((each for each in starts if lines and (each / lines[0]).exists()), where.parent)
    yield from (os.path.abspath(start / line) for line in lines)


def _labels_of(file: str) -> str:
    """Below labels/ in the place of images/, or else beside the image."""
    folder, images, name = file.replace(os.sep, "/").rpartition("/images/")
    text = f"{folder}/labels/{name}".rpartition(".")[0] + ".txt"
    return text if images and os.path.exists(text) else os.path.splitext(file)[0] + ".txt"


def _read_all(
    files: list[str],
    root: str,
    classes: tuple[str, ...],
    max_pixels: int,
    bare: list[str],
    most: int | None,
) -> tuple[list[RawImage], list[tuple[str, str]]]:
    problems: list[tuple[str, str]] = []

    def read(file: str) -> RawImage | None:
        key = Path(file).relative_to(root).as_posix()
        try:
            size = size_of_file(Path(file), max_pixels)
        except BadImage as error:
            problems.append((key, str(error)))
            return None
        labels = _labels_of(file)
        try:
            text = read_file(Path(labels), MAX_TEXT_BYTES).decode("utf-8-sig", "replace")
        except FileNotFoundError:
            text = ""
            bare.append(key)
        except OSError as error:
            problems.append((key, f"its labels can't be read: {reason_of(error)}"))
            return None
        objects: list[RawObject] = []
        for number, row in enumerate(text.splitlines(), 1):
            if row.strip():
                try:
                    objects.append(_object(row, classes, size, most))
                except IndexError as error:
                    raise UserError(
                        f"{labels}, row {number}, has the class {error}, and there are names of "
                        f"{len(classes)} classes, counted from 0; correct the names or the row."
                    ) from error
                except ValueError as error:
                    problems.append((key, f"row {number} of its labels {error}; it is left out"))
        return RawImage(key, size, objects)

    with ThreadPoolExecutor() as pool:  # it waits for the disk
        images = [image for image in pool.map(read, files) if image is not None]
    return images, sorted(problems)


def _object(
    row: str, classes: tuple[str, ...], size: tuple[int, int], most: int | None
) -> RawObject:
    """Raises ValueError for what is no row, IndexError for a class that has no name."""
    try:
        number, *shares = map(float, row.split())
    except ValueError:
        raise ValueError("is not of numbers alone") from None
    shares = shares[:most]
    if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
        raise ValueError(f"has {len(shares)} numbers, which are no box and no outline")
    if number < 0 or not number.is_integer():
        raise ValueError(f"has the class {number:g}")
    if number >= len(classes):
        raise IndexError(f"{number:g}")
    if not all(-SLACK <= share <= 1 + SLACK for share in shares):
        raise ValueError("has numbers that are no shares of the image, 0 to 1")
    name, (height, width) = classes[int(number)], size
    if len(shares) == 4:
        x, y, w, h = (share * by for share, by in zip(shares, (width, height) * 2, strict=True))
        return RawObject(name, (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    points = [
        min(max(share, 0.0), 1.0) * (height if place % 2 else width)
        for place, share in enumerate(shares)
    ]
    return RawObject(name, extent([points]), [points])
