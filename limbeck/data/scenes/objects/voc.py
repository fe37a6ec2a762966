"""PASCAL VOC's XML files, an image each, and those of tools that export such beside the images."""

from pathlib import PurePosixPath
from xml.etree import ElementTree

from limbeck.data.folder import FilesSource, named, read_image
from limbeck.data.formats import is_image_name
from limbeck.data.scenes.coco import split_of
from limbeck.data.scenes.layout import Place
from limbeck.data.scenes.objects.gather import FoundObjects, RawImage, RawObject
from limbeck.data.scenes.pixels import upright_size
from limbeck.data.scenes.voc import read_lists
from limbeck.data.source import BadImage
from limbeck.errors import UserError
from limbeck.files import MIB, printable, read_file, reason_of

LISTS = "ImageSets/Main/"
MAX_BYTES = 16 * MIB


def find_voc(place: Place) -> FoundObjects | None:
    """The images that XML files describe; None where there are no such files."""
    names = [name for name in place.names if name.lower().endswith(".xml")]
    trees = {name: tree for name in names if (tree := _read(place, name)) is not None}
    if not trees:
        return None
    stems: dict[str, list[str]] = {}
    for name in filter(is_image_name, place.names):
        stems.setdefault(PurePosixPath(name).stem, []).append(name)
    lists = read_lists(place, LISTS)
    listed = {stem: split for split, each in lists.items() for stem in each}
    splits = {
        name: listed.get(PurePosixPath(name).stem) if lists else split_of(name) for name in trees
    }
    is_taken = place.choose(splits.values())
    problems: list[tuple[str, str]] = []
    annotated = []
    classes: set[str] = set()
    for name, tree in trees.items():
        # The classes are those of all splits, so that they are the same in each.
        classes |= {_text(each, "name", name) for each in tree.iter("object")}
        if not is_taken(splits[name]):
            continue
        image = _image_of(name, stems)
        if image is None:
            problems.append((name, "its image is not there"))
            continue
        try:
            annotated.append(_image(place, name, tree, image))
        except BadImage as error:
            problems.append((image, str(error)))
    empty = [image.key for image in annotated if not image.objects]
    note = f"{named(empty, 'image')} without objects: shown as negatives." if empty else ""
    return FoundObjects(
        images=FilesSource(place.root, [image.key for image in annotated], (), None),
        annotated=annotated,
        classes=tuple(sorted(classes)),
        layout="PASCAL VOC's XML files",
        problems=tuple(problems),
        notes=(*place.notes, *filter(None, [note])),
        splits=tuple(sorted({split for split in splits.values() if split})),
    )


def _read(place: Place, name: str) -> ElementTree.Element | None:
    """The file where it is of VOC's form."""
    file = place.root / name
    try:
        data = read_file(file, MAX_BYTES)
        if b"<annotation" not in data or b"<!ENTITY" in data:
            return None  # of another program, or one that would blow up
        return ElementTree.fromstring(data)
    except OSError as error:
        raise UserError(f"Can't read {file}: {reason_of(error)}.") from error
    except ElementTree.ParseError as error:
        raise UserError(f"{printable(str(file))} is damaged ({error}); write it again.") from error


def _image_of(name: str, stems: dict[str, list[str]]) -> str | None:
    """The image of the file's stem: beside it, or in a folder beside its own."""
    path = PurePosixPath(name)
    same = stems.get(path.stem, [])
    folders = [path.parent, path.parent.parent]
    beside = [each for each in same if PurePosixPath(each).parent == folders[0]]
    near = [each for each in same if PurePosixPath(each).parent.parent == folders[1]]
    return next(iter(beside or near or same), None)


def _image(place: Place, name: str, tree: ElementTree.Element, image: str) -> RawImage:
    size = tuple(int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    if min(size) < 1:  # some tools write zeros
        data = read_image(place.root / image)
        size = upright_size(data, place.options.max_image_pixels)
    objects = []
    for each in tree.iter("object"):
        corners = [_number(each, f"bndbox/{side}", name) for side in ("xmin", "ymin")]
        # The first pixel is 1, and the last is inside: with 0-based edges the ends stay.
        corners = [corner - 1 for corner in corners]
        corners += [_number(each, f"bndbox/{side}", name) for side in ("xmax", "ymax")]
        is_difficult = (each.findtext("difficult") or "0").strip() == "1"
        objects.append(RawObject(
            _text(each, "name", name), (*corners,), is_crowd=is_difficult  # type: ignore[arg-type]
        ))  # fmt: skip
    return RawImage(image, (size[0], size[1]), objects)


def _text(element: ElementTree.Element, name: str, file: str) -> str:
    text = (element.findtext(name) or "").strip()
    if not text:
        raise UserError(f"An object in {printable(file)} has no '{name}'; correct the file.")
    return text


def _number(element: ElementTree.Element, name: str, file: str) -> float:
    text = _text(element, name, file)
    try:
        return float(text)
    except ValueError as error:
        raise UserError(
            f"'{name}' of an object in {printable(file)} is '{text[:20]}', no number; correct it."
        ) from error
