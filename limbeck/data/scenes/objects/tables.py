"""Tables with a column of images and one of objects: .parquet and .arrow files, and the hub's.

No table says what the four numbers of its boxes are, so the options must.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from limbeck.data.hub import TableSource, open_hub, open_table
from limbeck.data.scenes.objects.gather import FoundObjects, RawImage, RawObject
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.data.scenes.pixels import upright_size
from limbeck.data.scenes.tables import table_splits
from limbeck.data.source import BadImage, Subset
from limbeck.documents import parse_json
from limbeck.errors import UserError

BOXES = ("bbox", "boxes", "bboxes", "box")
CLASSES = ("category", "categories", "label", "labels", "category_id", "class", "classes", "name")
SIZES = ("height", "width")
Box = tuple[float, float, float, float]
CORNERS: dict[str, Callable[[float, float, float, float], Box]] = {
    "xyxy": lambda left, top, right, bottom: (left, top, right, bottom),
    "xywh": lambda left, top, width, height: (left, top, left + width, top + height),
    "cxcywh": lambda x, y, w, h: (x - w / 2, y - h / 2, x + w / 2, y + h / 2),
}


def find_in_tables(root: str, options: ObjectOptions, split: str) -> FoundObjects:
    """The rows of a table; label_column, or what its fields are called, says which column has the
    objects."""
    is_hub = root.startswith("hf:")
    schemas: list[Any] = []

    def others_of(schema: Any) -> list[str]:
        schemas.append(schema)
        sizes = SIZES if {*SIZES} <= {*schema.names} else ()
        return [_column(schema, options.label_column, root), *sizes]

    open_ = open_hub if is_hub else open_table
    source = open_(root, replace(options, label_column=""), split, others_of)
    column, *sizes = source.others
    rows = [_rows(value) for value in source.others[column]]
    if options.box_format is None:
        example = next((box for row in rows for box, _, _ in row or ()), None)
        raise UserError(
            f"{root} does not say what the four numbers of its boxes are ({example}); pass "
            "--data.box-format xywh, xyxy, cxcywh, relative-xyxy or relative-cxcywh."
        )
    names = _names(schemas[0], column)
    values = [value for row in rows for _, value, _ in row or ()]
    is_counted = not names and all(isinstance(value, int) for value in values)
    if is_counted:
        names = tuple(map(str, range(max(values, default=-1) + 1)))
    elif not names:
        names = tuple(sorted({str(value) for value in values}))
    images, kept, problems = [], [], []
    for index, row in enumerate(rows):
        try:
            if row is None:
                raise BadImage("it has not as many classes as boxes")
            size = _size(source, index, sizes, options.max_image_pixels)
            objects = [_object(each, names, size, options.box_format) for each in row]
        except (BadImage, TypeError, ValueError) as error:
            is_bad = isinstance(error, BadImage)
            said = str(error) if is_bad else "its boxes are not of four numbers"
            problems.append((source.key(index), said))
            continue
        except IndexError as error:
            raise UserError(
                f"{source.key(index)} of {root} has an object of the class {error}, and there are "
                f"names of {len(names)}; correct the table."
            ) from error
        images.append(RawImage(source.key(index), size, objects))
        kept.append(index)
    source.others.clear()
    return FoundObjects(
        images=Subset(source, kept),
        annotated=images,
        classes=names,
        layout=f"a table with objects in '{column}', boxes as {options.box_format}",
        problems=tuple(problems),
        notes=source.notes,
        splits=table_splits(root, is_hub=is_hub),
        is_counted=is_counted,
    )


def _column(schema: Any, asked: str | None, root: str) -> str:
    """The column of objects: one whose fields are boxes and their classes."""
    found = [field.name for field in schema if _fields(field.type) is not None]
    if asked in found or (asked is None and len(found) == 1):
        return asked or found[0]
    if not found:
        told = f"No column of the table {root} holds"
    elif asked is None:
        told = f"More than one column of the table {root} holds"
    else:
        told = f"The column {asked} of the table {root} does not hold"
    raise UserError(
        f"{told} objects, that is {BOXES[0]} and {CLASSES[0]} (columns: "
        f"{', '.join(found or schema.names)}); name it with --data.label-column."
    )


def _fields(kind: Any) -> tuple[str, str] | None:
    """What boxes and classes are called in a list of structs, or in a struct of lists."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if not types.is_struct(kind):
        return None
    names = [field.name for field in kind]
    box, own = (next((n for n in known if n in names), None) for known in (BOXES, CLASSES))
    return (box, own) if box and own else None


def _rows(value: Any) -> list[tuple[Any, Any, bool]] | None:
    """(box, class, is_crowd) of the objects of a row; None where their numbers differ."""
    if isinstance(value, dict):
        columns = {name: each for name, each in value.items() if isinstance(each, list)}
        if len({*map(len, columns.values())}) > 1:
            return None
        parts = zip(*columns.values(), strict=True)
        value = [dict(zip(columns, part, strict=True)) for part in parts]
    found = []
    for each in value or ():
        box, own = (next((each[n] for n in known if n in each), None) for known in (BOXES, CLASSES))
        found.append((box, own, bool(each.get("iscrowd") or each.get("is_crowd"))))
    return found


def _names(schema: Any, column: str) -> tuple[str, ...]:
    """Of a ClassLabel within the column, as ``datasets`` notes it."""
    text = (schema.metadata or {}).get(b"huggingface")
    notes = parse_json(text, where="the table's schema") if text else {}
    level: list[Any] = [(notes.get("info", {}).get("features") or {}).get(column)]
    while level:
        each = level.pop()
        if isinstance(each, dict):
            if each.get("_type") == "ClassLabel" and isinstance(each.get("names"), list):
                return tuple(map(str, each["names"]))
            level += each.values()
    return ()


def _size(source: TableSource, index: int, columns: list[str], max_pixels: int) -> tuple[int, int]:
    height, width = (source.others[name][index] for name in columns) if columns else (None, None)
    if height and width:
        return int(height), int(width)
    return upright_size(source.read(index).data, max_pixels)


def _object(
    each: tuple[Any, Any, bool], names: tuple[str, ...], size: tuple[int, int], box_format: str
) -> RawObject:
    """Raises IndexError for a class without a name, TypeError and ValueError for no box."""
    numbers, own, is_crowd = each
    name = names[own] if isinstance(own, int) and 0 <= own < len(names) else str(own)
    if name not in names:
        raise IndexError(name)
    relative, _, kind = box_format.rpartition("-")
    factors = (size[1], size[0]) * 2 if relative else (1, 1, 1, 1)
    shares = [float(number) * by for number, by in zip(numbers, factors, strict=True)]
    return RawObject(name, CORNERS[kind](*shares), is_crowd=is_crowd)
