"""PASCAL VOC's annotations, one XML for each image, and those of tools that export such.

VOC counts pixels from 1 and its boxes hold their last ones: 1 to 3 is 0 to 3 of what counts
between the pixels. Where any box of a set begins at 0 its tool counted from 0: taken as it is.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree

from limbeck.data.folder import SPLIT_OF, FilesSource, named
from limbeck.data.formats import is_image_name
from limbeck.data.scenes.coco import files_by_name, find_file
from limbeck.data.scenes.layout import Place, read_list, split_in
from limbeck.data.scenes.objects.gather import FoundObjects, RawImage, RawObject
from limbeck.data.scenes.objects.turning import size_of_file
from limbeck.data.source import BadImage
from limbeck.files import MIB, read_file, reason_of

LISTS = "ImageSets/Main/"
MAX_XML_BYTES = 4 * MIB
SIDES = ("xmin", "ymin", "xmax", "ymax")


def find_voc(place: Place) -> FoundObjects | None:
    """The images of all XML files of this kind, by the lists of their splits if there are any."""
    problems: list[tuple[str, str]] = []
    trees = {}
    for name in place.names:
        if name.lower().endswith(".xml"):
            try:
                data = read_file(place.root / name, MAX_XML_BYTES)
                if b"<!ENTITY" in data:  # a few lines of them can fill all memory
                    raise ElementTree.ParseError("it has entities")
                tree = ElementTree.fromstring(data)
            except (OSError, ElementTree.ParseError) as error:
                reason = reason_of(error) if isinstance(error, OSError) else str(error)
                problems.append((name, f"its annotation can't be read: {reason}"))
                continue
            if tree.tag == "annotation":
                trees[name] = tree
    if not trees:
        return None
    split_of = dict(_listed(place)) or {name: split_in(name) for name in trees}
    is_taken = place.choose(split_of.values())
    taken = [name for name, split in split_of.items() if is_taken(split)]
    is_from_one = min(map(_least, trees.values())) >= 1
    images: dict[str, RawImage] = {}
    files_of = files_by_name(place)
    by_stem: dict[str, list[str]] = {}
    for name in files_of:
        by_stem.setdefault(PurePosixPath(name).stem, []).append(name)
    for name in taken:
        try:
            if name not in trees:
                raise BadImage("its annotation is not there")
            tree = trees[name]
            # A file that was renamed keeps its old name in its annotation.
            stated = [tree.findtext("filename") or "", *by_stem.get(PurePosixPath(name).stem, [])]
            files = (find_file(each, name, files_of) for each in reversed(stated) if each)
            key = next((each for each in files if each), None)
            if key is None:
                raise BadImage(f"its image {stated[0]} is not there")
            if key in images:
                raise BadImage(f"it annotates {key} again")
            size = (int(tree.findtext("size/height") or 0), int(tree.findtext("size/width") or 0))
            if min(size) < 1:
                size = size_of_file(place.root / key, place.options.max_image_pixels)
            objects = [_object(each, is_from_one) for each in tree.iter("object")]
            images[key] = RawImage(key, size, objects)
        except (BadImage, ValueError, TypeError) as error:
            reason = str(error) if isinstance(error, BadImage) else "its numbers are damaged"
            problems.append((name, reason))
    notes = [*place.notes]
    bare = sorted({*filter(is_image_name, place.names)} - images.keys())
    if bare and len(taken) == len(trees):
        notes.append(f"{named(bare, 'image')} without an annotation left out.")
    if not is_from_one:
        notes.append("Boxes begin at 0, so their pixels are not counted from 1 as VOC's are.")
    found = (each.findtext("name") or "" for tree in trees.values() for each in tree.iter("object"))
    return FoundObjects(
        images=FilesSource(place.root, [*images], (), None),
        annotated=[*images.values()],
        classes=tuple(sorted(set(found))),
        layout="PASCAL VOC's annotations",
        problems=tuple(problems),
        notes=tuple(notes),
        splits=tuple(sorted({split for split in split_of.values() if split})),
    )


def _listed(place: Place) -> Iterator[tuple[str, str]]:
    """(annotation, split) of lists of splits: ImageSets/Main/train.txt."""
    for name in place.names:
        top, found, file = f"/{name}".partition(f"/{LISTS}")
        split = SPLIT_OF.get(file.removesuffix(".txt").lower())
        if found and split:
            for line in read_list(place.root / name):
                yield f"{top}/Annotations/{line.split()[0]}.xml".removeprefix("/"), split


def _sides(each: Any) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(each.findtext(f"bndbox/{side}")) for side in SIDES)
    return left, top, right, bottom


def _least(tree: Any) -> float:
    """Where the first box of an image begins."""
    found = [each.findtext(f"bndbox/{side}") for each in tree.iter("object") for side in SIDES[:2]]
    try:
        return min(map(float, filter(None, found)), default=1.0)
    except ValueError:
        return 1.0  # it is met again, and named


def _object(each: Any, is_from_one: bool) -> RawObject:
    left, top, right, bottom = _sides(each)
    box = (left - is_from_one, top - is_from_one, right, bottom)
    name, is_difficult = each.findtext("name") or "", each.findtext("difficult") == "1"
    return RawObject(name, box, is_crowd=is_difficult)
