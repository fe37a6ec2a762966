"""YOLO's text files beside images, as data.yaml lists them: boxes, or outlines, in parts of the
image's size; Roboflow's folders, too."""

from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from limbeck.data.folder import SPLIT_OF, FilesSource, named, read_image, walk
from limbeck.data.formats import is_image_name
from limbeck.data.scenes.layout import Place
from limbeck.data.scenes.objects.gather import FoundObjects, RawImage, RawObject
from limbeck.data.scenes.pixels import upright_size
from limbeck.data.source import BadImage
from limbeck.errors import UserError
from limbeck.files import MIB, printable, read_file, reason_of

MAX_BYTES = 64 * MIB
SLACK = 0.01  # of the image's side that a number may lie outside 0..1: of rounding


def find_yolo(place: Place) -> FoundObjects | None:
    """The images that a YAML file lists; None where there is none with "names" or "nc"."""
    file, content = _yaml(place)
    if content is None:
        return None
    classes = _classes(file, content, place.options.class_names)
    splits = {SPLIT_OF[key]: content[key] for key in ("train", "val", "test") if content.get(key)}
    if not splits:
        raise UserError(f"{file} names no images (train, val, test); correct it.")
    is_taken = place.choose(splits)
    problems: list[tuple[str, str]] = []
    files: list[Path] = []
    for split, entry in splits.items():
        if is_taken(split):
            files += _images(file, content, entry)
    files = list(dict.fromkeys(files))
    root = _common(file.parent, files)
    annotated = []
    for image in files:
        key = image.relative_to(root).as_posix()
        try:
            size = upright_size(read_image(image), place.options.max_image_pixels)
            annotated.append(RawImage(key, size, _objects(image, size, classes, problems, key)))
        except BadImage as error:
            problems.append((key, str(error)))
    empty = [image.key for image in annotated if not image.objects]
    note = f"{named(empty, 'image')} without objects: shown as negatives." if empty else ""
    return FoundObjects(
        images=FilesSource(root, [image.key for image in annotated], (), None),
        annotated=annotated,
        classes=classes,
        layout=f"YOLO's labels ({file.name})",
        problems=tuple(problems),
        notes=(*place.notes, *filter(None, [note])),
        splits=tuple(sorted(splits)),
    )


def _yaml(place: Place) -> tuple[Path, dict[str, Any] | None]:
    names = [place.yaml_name] if place.yaml_name else [
        name for name in place.names if name.lower().endswith((".yaml", ".yml"))
    ]  # fmt: skip
    for name in sorted(names, key=lambda name: (name.count("/"), "data" not in name)):
        file = place.root / name
        try:
            content = yaml.safe_load(read_file(file, MAX_BYTES))
        except OSError as error:
            raise UserError(f"Can't read {file}: {reason_of(error)}.") from error
        except yaml.YAMLError as error:
            if place.yaml_name is None:
                continue  # of another program
            first = str(error).replace("\n", " ")
            raise UserError(f"{file} is no YAML: {first}.") from error
        if isinstance(content, dict) and {"names", "nc"} & content.keys():
            return file, content
    return place.root, None


def _classes(file: Path, content: dict[str, Any], given: tuple[str, ...]) -> tuple[str, ...]:
    names = given or content.get("names")
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"The names in {file} are not numbered 0, 1, ...; correct it.")
        names = [names[index] for index in range(len(names))]
    if not names:
        raise UserError(f"{file} has no names of classes; pass them as --data.class-names.")
    found = tuple(map(str, names))
    if len(set(found)) < len(found):
        raise UserError(f"{file} names two classes alike; correct it.")
    return found


def _images(file: Path, content: dict[str, Any], entry: Any) -> list[Path]:
    """The image files of a split: of a folder, of a list in a .txt, or of several of these."""
    if isinstance(entry, list):
        return [image for each in entry for image in _images(file, content, each)]
    top = Path(str(content.get("path") or "."))
    # Roboflow writes ../train/images, though it lies beside the file.
    inner = PurePosixPath(str(entry).replace("\\", "/"))
    plain = PurePosixPath(*[part for part in inner.parts if part != ".."])
    for place in (file.parent / top / inner, file.parent / inner, file.parent / plain):
        if place.is_dir():
            return sorted(place / name for name in walk(place) if is_image_name(name))
        if place.is_file() and place.suffix == ".txt":
            lines = read_file(place, MAX_BYTES).decode("utf-8-sig", "replace").splitlines()
            found = [_listed(place, file.parent / top, line.strip()) for line in lines]
            return [image for image in found if image is not None]
    raise UserError(
        f"{file} names '{entry}', and neither {file.parent / top / inner} nor one beside the file "
        "is there; correct it, or its 'path'."
    )


def _listed(text: Path, top: Path, line: str) -> Path | None:
    """The image of a line, relative to the list or to the set; one that is not there is met later,
    in reading it."""
    if not line:
        return None
    beside, below = text.parent / line, top / line
    return below if below.exists() and not beside.exists() else beside


def _common(folder: Path, files: list[Path]) -> Path:
    """The folder itself where all files lie in it, or else the nearest above all of them."""
    root = folder
    while not all(file.is_relative_to(root) for file in files):
        if root == root.parent:
            raise UserError(f"The images of {folder} lie in no common folder.")
        root = root.parent
    return root


def _label_file(image: Path) -> Path:
    """Beside the image, or in the folder "labels" where it is in "images"."""
    parts = list(image.parts)
    places = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _objects(
    image: Path, size: tuple[int, int], classes: tuple[str, ...],
    problems: list[tuple[str, str]], key: str,
) -> list[RawObject]:  # fmt: skip
    file = _label_file(image)
    try:
        text = read_file(file, MAX_BYTES).decode("utf-8-sig", "replace")
    except FileNotFoundError:
        return []  # a negative
    except OSError as error:
        raise BadImage(f"its labels can't be read: {reason_of(error)}") from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not (words := line.split()):
            continue
        try:
            kind, values = float(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            problems.append((key, f"a line of its labels is no row of numbers ({number})"))
            continue
        if kind != int(kind) or not 0 <= kind < len(classes):
            raise UserError(
                f"{printable(str(file))} has the class {words[0]} in line {number}, and there are "
                f"{len(classes)} names, of the classes 0 to {len(classes) - 1}; correct it."
            )
        if not (len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)):
            problems.append((key, f"a line of its labels is no box and no outline ({number})"))
        elif min(values) < -SLACK or max(values) > 1 + SLACK:
            problems.append((key, f"a line of its labels is not in parts of the image ({number})"))
        else:
            found.append(_object(classes[int(kind)], values, size))
    return found


def _object(name: str, values: list[float], size: tuple[int, int]) -> RawObject:
    height, width = size
    if len(values) == 4:
        x, y, w, h = (value * side for value, side in zip(values, (width, height) * 2, strict=True))
        return RawObject(name, (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    x, y = ([value * width for value in values[::2]], [value * height for value in values[1::2]])
    outline = [value for pair in zip(x, y, strict=True) for value in pair]
    return RawObject(name, (min(x), min(y), max(x), max(y)), [outline])
