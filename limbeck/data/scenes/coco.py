"""COCO's annotations as masks: outlines and run lengths drawn, the smaller over the larger.

Value 0 is what nothing is drawn on, the background; a crowd is of its class, too. The annotations
of each image are kept as text, packed: as objects of Python those of COCO itself are gigabytes.
"""

import re
from collections import Counter
from pathlib import PurePosixPath
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from limbeck.data.folder import SPLIT_OF, FilesSource, named
from limbeck.data.formats import is_image_name
from limbeck.data.scenes.class_table import BACKGROUND, ClassTable
from limbeck.data.scenes.layout import Found, Masks, Place
from limbeck.data.scenes.pixels import RawMask
from limbeck.data.scenes.raster import Patch, decode_runs, fill_polygon, fill_runs
from limbeck.data.source import BadImage, Names
from limbeck.documents import parse_json, to_json
from limbeck.errors import UserError
from limbeck.files import is_inside, printable, read_file, reason_of

MAX_BYTES = 2**31
MAX_FILES = 50  # JSON files of one place that are looked into
Id = int | str


class Image(TypedDict):
    """One image of a file."""

    id: Id
    file_name: str
    height: NotRequired[int | None]
    width: NotRequired[int | None]


class Category(TypedDict):
    """A class."""

    id: Id
    name: str
    supercategory: NotRequired[str | None]


class Runs(TypedDict):
    """Run lengths of a mask of (height, width) ``size``."""

    counts: list[int] | str
    size: list[int]


class Annotation(TypedDict):
    """An object of an image."""

    image_id: Id
    category_id: Id
    segmentation: NotRequired[list[list[float]] | Runs | None]
    bbox: NotRequired[list[float] | None]
    area: NotRequired[float | None]
    iscrowd: NotRequired[int | bool | None]


class Coco(TypedDict):
    """A whole file, as far as it is read."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


class CocoMasks(Masks):
    """Masks drawn of annotations; ``drawn`` has, of each image, [value, outlines or runs] each."""

    def __init__(self, files: list[str], sizes: list[tuple[int, int]], drawn: list[str]) -> None:
        self._files, self._drawn = Names(files), Names(drawn)
        self._sizes = np.array(sizes, np.int64).reshape(-1, 2)

    def read(self, index: int) -> RawMask:
        """Drawn anew."""
        height, width = self._sizes[index].tolist()
        parts: list[tuple[int, int, list[Patch]]] = []
        for value, shape in parse_json(self._drawn[index], list[Any]):
            patches = _patches(shape, height, width)
            parts.append((sum(int(patch.is_inside.sum()) for patch in patches), value, patches))
        pixels = np.zeros((height, width), np.uint16)
        for _, value, patches in sorted(parts, key=lambda part: -part[0]):
            for patch in patches:
                rows, columns = patch.is_inside.shape
                window = pixels[patch.top : patch.top + rows, patch.left : patch.left + columns]
                window[patch.is_inside] = value
        return RawMask(pixels)

    def name(self, index: int) -> str:
        """The annotations' file."""
        return self._files[index]

    def stamp(self, index: int) -> str:
        """What is drawn."""
        return self._drawn[index]


def _patches(shape: Any, height: int, width: int) -> list[Patch]:
    if isinstance(shape, dict):
        counts = shape["counts"]
        if shape["size"] != [height, width]:
            raise BadImage(
                f"its annotation is of {shape['size'][::-1]} pixels, its image of {[width, height]}"
            )
        runs = decode_runs(counts) if isinstance(counts, str) else counts
        return [fill_runs(runs, height, width)]
    return [fill_polygon(outline, height, width) for outline in shape]


def find_coco(place: Place) -> Found | None:
    """The images that JSON files with outlines list; None where there are no such files."""
    read = {name: coco for name in candidates(place) if (coco := _read(place, name))}
    if not read:
        return None
    splits = {name: split_of(name) for name in read}
    is_taken = place.choose(splits.values())
    table, value_of = _classes(read)
    files_of = files_by_name(place)
    images: list[str] = []
    of_file: list[str] = []
    sizes: list[tuple[int, int]] = []
    drawn: list[str] = []
    problems: list[tuple[str, str]] = []
    num_boxes = 0
    for name, coco in read.items():
        if not is_taken(splits[name]):
            continue
        shapes: dict[Id, list[Any]] = {}
        name_of = {each["id"]: each["name"] for each in coco["categories"]}
        for each in coco["annotations"]:
            value = value_of.get(name_of.get(each["category_id"], ""))
            if value is None:
                raise UserError(
                    f"{place.root / name} has annotations of the category "
                    f"{each['category_id']!r}, which it does not list; correct it."
                )
            shape = each.get("segmentation")
            num_boxes += not shape
            if shape:
                shapes.setdefault(each["image_id"], []).append([value, shape])
        for image in coco["images"]:
            file = find_file(image["file_name"], name, files_of)
            height, width = image.get("height") or 0, image.get("width") or 0
            if file is None:
                problems.append((image["file_name"], "its file is not there"))
            elif min(height, width) < 1 or height * width > place.options.max_image_pixels:
                problems.append((file, f"its size in {name} is {width} x {height}"))
            else:
                images.append(file)
                of_file.append(name)
                sizes.append((height, width))
                drawn.append(to_json(shapes.get(image["id"], []), indent=None))
    refuse_doubles(images, place)
    notes = [*place.notes]
    if num_boxes:
        notes.append(f"{num_boxes} annotations without an outline (boxes alone) are left out.")
    if empty := [file for file, text in zip(images, drawn, strict=True) if text == "[]"]:
        notes.append(f"{named(empty, 'image')} without annotations: background alone.")
    return Found(
        images=FilesSource(place.root, images, (), None),
        masks=CocoMasks(of_file, sizes, drawn),
        layout=f"COCO annotations ({', '.join(sorted(set(of_file)))})",
        table=table,
        is_certain=True,
        problems=tuple(problems),
        notes=tuple(notes),
        splits=tuple(sorted({split for split in splits.values() if split})),
    )


def candidates(place: Place) -> list[str]:
    """The JSON files that may be COCO's."""
    if place.options.layout == "auto" and len(place.json_names) > MAX_FILES:
        return []  # one for each image, of another tool
    # Beside them COCO has key points of the same images.
    instances = [name for name in place.json_names if "instances" in PurePosixPath(name).name]
    return instances or place.json_names


def _read(place: Place, name: str) -> Coco | None:
    """The file where it is of COCO's form and has outlines."""
    coco = read_coco(place, name)
    if coco is None or any(each.get("segmentation") for each in coco["annotations"]):
        return coco
    place.notes.append(f"{name} has boxes alone, no outlines.")
    return None


def read_coco(place: Place, name: str) -> Coco | None:
    """The file where it is of COCO's form."""
    file = place.root / name
    try:
        data = read_file(file, MAX_BYTES)
    except OSError as error:
        raise UserError(f"Can't read {file}: {reason_of(error)}.") from error
    if not all(word in data for word in (b'"images"', b'"annotations"', b'"categories"')):
        return None
    return parse_json(data, Coco, str(file))


def split_of(name: str) -> str | None:
    """By a word of the file's name or of a folder: instances_train2017.json, valid/x.json."""
    words = [
        word for part in reversed(name.lower().split("/")) for word in re.findall("[a-z]+", part)
    ]
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), None)


def _classes(read: dict[str, Coco]) -> tuple[ClassTable, dict[str, int]]:
    """The categories of all files, after the background, and the value of each."""
    names = category_names(read)
    background = next((name for name in names if name.lower() in BACKGROUND), "background")
    names = [background, *(name for name in names if name != background)]
    table = ClassTable(tuple(names), tuple(range(len(names))), "COCO's categories")
    return table, {name: value for value, name in enumerate(names)}


def category_names(read: dict[str, Coco]) -> list[str]:
    """The categories of all files by name, in the order of their ids.

    One without annotations that only stands above the others (Roboflow's) is none.
    """
    order: dict[str, tuple[bool, Any]] = {}
    parents: Counter[str] = Counter()
    used: set[str] = set()
    for coco in read.values():
        ids = {each["category_id"] for each in coco["annotations"]}
        for category in coco["categories"]:
            name = category["name"]
            order.setdefault(name, (isinstance(category["id"], str), category["id"]))
            used |= {name} if category["id"] in ids else set()
            if category.get("supercategory") and category["supercategory"] != name:
                parents[str(category["supercategory"])] += 1
    ranked = sorted(order, key=order.__getitem__)
    return [name for name in ranked if name in used or not parents[name]]


def files_by_name(place: Place) -> dict[str, list[str]]:
    """The image files below the root by their whole names and by their base names."""
    found: dict[str, list[str]] = {}
    for name in filter(is_image_name, place.names):
        for key in {name, PurePosixPath(name).name}:
            found.setdefault(key, []).append(name)
    return found


def find_file(file_name: str, json_name: str, files_of: dict[str, list[str]]) -> str | None:
    """The file that an entry means: beside the JSON, below the root, or the one of that name."""
    name = file_name.replace("\\", "/")
    if not is_inside(name):
        name = PurePosixPath(name).name
    beside = (PurePosixPath(json_name).parent / name).as_posix()
    for key in (beside, PurePosixPath(name).as_posix()):
        if key in files_of and key in files_of[key]:
            return key
    same = files_of.get(PurePosixPath(name).name, [])
    if len(same) > 1:  # train2017/1.jpg and val2017/1.jpg
        split = split_of(json_name)
        same = [each for each in same if split_of(each.rpartition("/")[0]) == split]
    return same[0] if len(same) == 1 else None


def refuse_doubles(images: list[str], place: Place) -> None:
    """Raise UserError for an image that several files list."""
    twice = [name for name, count in Counter(images).items() if count > 1]
    if twice:
        raise UserError(
            f"{printable(twice[0])} is listed by several JSON files in {place.root}; leave one "
            "of them in the folder, or pass it as --data.root."
        )
