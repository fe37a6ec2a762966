"""Tables with a column of images and one of their objects: .parquet and .arrow files, and the
hub's, as ``datasets`` writes them: objects {bbox, category}."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.data.folder import named
from limbeck.data.hub import is_table_name, open_hub, open_table, read_hub
from limbeck.data.scenes.objects.gather import FoundObjects, RawImage, RawObject
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.data.scenes.pixels import upright_size
from limbeck.data.source import BadImage
from limbeck.data.splits import choose_split, find_files, splits_of
from limbeck.data.table_images import TableFile
from limbeck.documents import parse_json
from limbeck.errors import UserError

COLUMNS = ("objects", "annotations", "labels", "boxes")
BOXES = ("bbox", "bboxes", "boxes", "box")
CLASSES = ("category", "categories", "category_id", "label", "labels", "class", "classes", "name")


def find_in_tables(root: str, options: ObjectOptions, split: str) -> FoundObjects:
    """The rows of a table. Raises UserError where nothing says what a box's numbers are."""
    is_hub = root.startswith("hf:")
    images = (open_hub if is_hub else open_table)(root, replace(options, label_column=""), split)
    schema, column, values = (_of_hub if is_hub else _of_files)(root, options, split)
    if options.box_format is None:
        raise UserError(
            f"The table {root} has boxes in its column '{column}', and does not say what their "
            "four numbers are; pass --data.box-format xywh (COCO's), xyxy, cxcywh, relative-xyxy "
            "or relative-cxcywh."
        )
    names = options.class_names or _class_names(schema, column)
    rows = [_parts(value, root, column) for value in values]
    used = [kind for kinds, _ in rows for kind in kinds]
    if not names and all(isinstance(kind, str) for kind in used):
        names = tuple(sorted(set(used)))
    if not names:
        raise UserError(
            f"The classes in the column '{column}' of {root} are numbers without names; pass these "
            "as --data.class-names."
        )
    problems: list[tuple[str, str]] = []
    annotated = []
    for index, (kinds, boxes) in enumerate(rows):
        try:
            size = upright_size(images.read(index).data, options.max_image_pixels)
        except BadImage as error:
            problems.append((images.key(index), str(error)))
            size = (1, 1)
            kinds, boxes = [], []
        objects = [
            RawObject(_name(kind, names, root), _corners(box, options.box_format, size))
            for kind, box in zip(kinds, boxes, strict=True)
        ]
        annotated.append(RawImage(images.key(index), size, objects))
    empty = [image.key for image in annotated if not image.objects]
    note = f"{named(empty, 'image')} without objects: shown as negatives." if empty else ""
    return FoundObjects(
        images=images,
        annotated=annotated,
        classes=tuple(names),
        layout=f"a table with objects in '{column}' ({options.box_format})",
        problems=tuple(problems),
        notes=(*images.notes, *filter(None, [note])),
        splits=() if is_hub else _splits(root),
    )


def _of_files(root: str, options: ObjectOptions, split: str) -> tuple[Any, str, list[Any]]:
    files = choose_split(sorted(find_files(root, is_table_name, [])), split, root, [])
    tables = [TableFile(file) for file, _ in files]
    schema = tables[0].schema
    column = _column(schema.names, options, root)
    return schema, column, [value for table in tables for value in table.values(column)]


def _of_hub(root: str, options: ObjectOptions, split: str) -> tuple[Any, str, list[Any]]:
    table = read_hub(root, split)
    schema = table.features.arrow_schema
    column = _column(schema.names, options, root)
    return schema, column, table.data.column(column).to_pylist()


def _column(names: list[str], options: ObjectOptions, root: str) -> str:
    wanted = [options.label_column] if options.label_column else COLUMNS
    for name in wanted:
        if name in names:
            return str(name)
    raise UserError(
        f"The table {root} has no column '{wanted[0]}' (it has {', '.join(names)}); name the one "
        "with the objects as --data.label-column."
    )


def _parts(value: Any, root: str, column: str) -> tuple[list[Any], list[Any]]:
    """Classes and boxes of a row: a struct of lists, or a list of structs."""
    if value is None:
        return [], []
    if isinstance(value, list):
        value = {key: [each[key] for each in value] for key in (value[0] if value else ())}
        if not value:
            return [], []
    found = [
        next((value[name] for name in names if value.get(name) is not None), None)
        for names in (CLASSES, BOXES)
    ]
    if None in found or len(found[0]) != len(found[1]):
        raise UserError(
            f"The column '{column}' of {root} has {', '.join(value)}, and as many of 'category' as "
            "of 'bbox' are looked for."
        )
    return found[0], found[1]


def _class_names(schema: Any, column: str) -> tuple[str, ...]:
    """The names that the table gives its classes, as ``datasets`` writes them."""
    written = (schema.metadata or {}).get(b"huggingface")
    if written is None:
        return ()
    said = parse_json(written, dict[str, Any]).get("info", {}).get("features", {}).get(column)
    return next(_names_in(said), ())


def _names_in(said: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(said, dict):
        if said.get("_type") == "ClassLabel":
            yield tuple(said["names"])
        for each in said.values():
            yield from _names_in(each)
    elif isinstance(said, list):
        for each in said:
            yield from _names_in(each)


def _name(kind: Any, names: tuple[str, ...], root: str) -> str:
    if isinstance(kind, str) and kind in names:
        return kind
    if isinstance(kind, int) and 0 <= kind < len(names):
        return names[kind]
    raise UserError(
        f"An object of {root} has the class {kind!r}, and there are {len(names)} names, of the "
        f"classes 0 to {len(names) - 1}; pass others as --data.class-names."
    )


def _corners(
    box: list[float], box_format: str, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom in pixels of four numbers of a format."""
    a, b, c, d = map(float, box)
    if box_format.startswith("relative-"):
        a, b, c, d = a * size[1], b * size[0], c * size[1], d * size[0]
    return {
        "xyxy": (a, b, c, d),
        "xywh": (a, b, a + c, b + d),
        "cxcywh": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    }[box_format.removeprefix("relative-")]


def _splits(root: str) -> tuple[str, ...]:
    if not Path(root).is_dir():
        return ()
    names = [file.relative_to(root).as_posix() for file in sorted(Path(root).rglob("*"))]
    return tuple(sorted(set(splits_of([name for name in names if is_table_name(name)])) - {""}))
