"""Names of classes from where people keep them: beside the masks, or in options."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbeck.documents import read_json
from limbeck.errors import UserError
from limbeck.files import MIB, read_file, reason_of

Colour = tuple[int, int, int]

# fmt: off
FILE_NAMES = (
    "meta.json", "classes.json", "id2label.json", "label_map.json", "labels.json",
    "objectInfo150.txt", "labelmap.txt", "label_colors.txt", "label_colours.txt",
    "class_dict.csv", "classes.csv", "class_names.txt", "classes.txt", "labels.txt", "codes.txt",
)
"""Where names are looked for, in this order; those with colours come first of the plain ones."""
VOID = {"void", "unlabeled", "unlabelled", "ignore", "ignored", "__ignore__", "unknown"}
"""Words for what is no class."""
BACKGROUND = {"background", "_background_", "__background__", "bg"}
OTHER = BACKGROUND | {"other", "others"}
# fmt: on
JSON_KEYS = ("classes", "class_names", "names", "id2label", "labels", "categories")
IGNORE_KEYS = ("ignore_index", "ignore", "ignore_label", "ignore_value")
COLOUR = re.compile(r"(\d{1,3})\s*[,\s]\s*(\d{1,3})\s*[,\s]\s*(\d{1,3})")
NUMBERED = re.compile(r"(-?\d+)\s*[:,;=\t ]\s*(.+)")


@dataclass(frozen=True)
class ClassTable:
    """What the values or colours of masks are called.

    ``values`` are those of ``names`` in masks of values, ``colours`` in masks of colours (empty if
    not known); ``ignored`` and ``ignored_colours`` are no class. ``is_counted``: the values are but
    the places in a list, which may have left out the background. ``where`` says where it is from.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    where: str
    colours: tuple[Colour, ...] = ()
    ignored: frozenset[int] = frozenset()
    ignored_colours: frozenset[Colour] = frozenset()
    is_counted: bool = False


def counted(names: Iterable[str], where: str, colours: Iterable[Colour] = ()) -> ClassTable:
    """The table of a list of names, whose values are 0, 1, ..."""
    listed = tuple(names)
    return ClassTable(
        listed, tuple(range(len(listed))), where, colours=tuple(colours), is_counted=True
    )


def find_table(root: Path, folders: Iterable[str] = ("",)) -> ClassTable | None:
    """The table of the first file of a known name in ``root`` or those ``folders`` of it."""
    for folder in dict.fromkeys(("", *folders)):
        for name in FILE_NAMES:
            file = root / folder / name
            if file.is_file() and (table := _read_table(file, is_sure=False)):
                return table
    return None


def given_table(names: tuple[str, ...], file: str) -> ClassTable | None:
    """The table of the options class_names or class_file; None if neither is given."""
    if file:
        table = _read_table(Path(file).expanduser(), is_sure=True)
        if table is None:
            raise UserError(f"{file} names no classes; write one a line, or a JSON list.")
        return table
    if not names:
        return None
    plain, colours = [], []
    for entry in names:
        name, equals, rest = entry.partition("=")
        found = COLOUR.fullmatch(rest.strip()) if equals else None
        if equals and found is None:
            raise UserError(
                f"data.class_names: '{entry}' is no name with a colour; write {name}=128,64,128."
            )
        plain.append(name.strip())
        colours += [_colour(found.groups(), entry)] if found else []
    if colours and len(colours) < len(plain):
        raise UserError("data.class_names: give each class a colour, or none.")
    return _without_doubles(counted(plain, "--data.class-names", colours))


def _read_table(file: Path, is_sure: bool) -> ClassTable | None:
    if file.suffix.lower() == ".json":
        try:
            table = _from_json(file)
        except UserError:  # of some other program
            if is_sure:
                raise
            return None
    else:
        try:
            text = read_file(file, MIB).decode("utf-8-sig", "replace")
        except OSError as error:
            if is_sure:
                raise UserError(f"Can't read {file}: {reason_of(error)}.") from error
            return None
        table = _from_lines([line.strip() for line in text.splitlines()], str(file))
    return _without_doubles(table) if table is not None else None


def _without_doubles(table: ClassTable) -> ClassTable:
    for what in (table.names, table.values, table.colours):
        twice = next((each for each in what if what.count(each) > 1), None)
        if twice is not None:
            raise UserError(f"{table.where} has '{twice}' for two classes; correct it.")
    return table


def _from_json(file: Path) -> ClassTable | None:
    content: Any = read_json(file, dict[str, Any] | list[Any])
    ignored: frozenset[int] = frozenset()
    if isinstance(content, dict):
        known = next((key for key in JSON_KEYS if key in content), None)
        ignored = frozenset(content[key] for key in IGNORE_KEYS if type(content.get(key)) is int)
        content = content[known] if known else content
    if isinstance(content, dict):
        if all(re.fullmatch(r"\d{1,5}", str(key)) for key in content):
            pairs = [(int(key), name) for key, name in content.items()]
        else:
            pairs = [(value, name) for name, value in content.items()]
    elif isinstance(content, list):
        pairs = [_numbered(place, entry) for place, entry in enumerate(content)]
    else:
        return None
    if not pairs or not all(type(v) is int and isinstance(n, str) and n for v, n in pairs):
        return None
    table = _of_pairs(sorted(pairs), str(file))
    is_counted = isinstance(content, list) and table.values == tuple(range(len(table.names)))
    return replace(table, ignored=table.ignored | ignored, is_counted=is_counted)


def _numbered(place: int, entry: object) -> tuple[Any, Any]:
    if isinstance(entry, dict):
        return entry.get("id", place), entry.get("name")
    return place, entry


def _of_pairs(pairs: list[tuple[int, str]], where: str) -> ClassTable:
    """Void names and negative values are no classes."""
    kept = [(value, name) for value, name in pairs if value >= 0 and name.lower() not in VOID]
    ignored = frozenset(value for value, name in pairs if value >= 0 and name.lower() in VOID)
    names, values = tuple(name for _, name in kept), tuple(value for value, _ in kept)
    return ClassTable(names, values, where, ignored=ignored)


def _from_lines(lines: list[str], where: str) -> ClassTable | None:
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        return None
    if lines[0].lower().startswith("idx") and "name" in lines[0].lower():  # ADE20K's objectInfo
        rows = [line.split("\t") for line in lines[1:]]
        pairs = [(int(row[0]), row[-1].split(",")[0].strip()) for row in rows if row[0].isdecimal()]
        return _of_pairs(pairs, where)
    if (coloured := list(_coloured(lines))) and len(coloured) >= len(lines) - 1:  # or a heading
        table = _of_pairs([(place, name) for place, (name, _) in enumerate(coloured)], where)
        return replace(
            table,
            colours=tuple(coloured[value][1] for value in table.values),
            ignored_colours=frozenset(coloured[value][1] for value in table.ignored),
            is_counted=not table.ignored,
        )
    numbered = [NUMBERED.fullmatch(line) for line in lines]
    if all(numbered):
        return _of_pairs([(int(m[1]), m[2].strip()) for m in numbered if m], where)
    if "," in lines[0]:  # a heading, as of tables
        return None
    # labelme's first line is __ignore__, whose value is -1 (255).
    start = -1 if lines[0].lower() == "__ignore__" else 0
    table = _of_pairs(list(enumerate(lines, start)), where)
    return replace(table, is_counted=not table.ignored)


def _coloured(lines: list[str]) -> Iterator[tuple[str, Colour]]:
    """(name, colour) of ``name:r,g,b::`` (CVAT), ``r g b name``, ``name,r,g,b`` and the like."""
    for line in lines:
        found = COLOUR.search(line)
        if found is None:
            continue
        name = (line[: found.start()] + " " + line[found.end() :]).strip(" \t:,;=")
        # What CVAT writes behind the colour: parts and actions.
        name = name.split(":")[0].strip(" \t,;") if ":" in line else name
        if name and not re.fullmatch(r"[\d\s,.]+", name):
            yield name, _colour(found.groups(), line)


def _colour(parts: Iterable[str | Any], line: str) -> Colour:
    red, green, blue = (int(part) for part in parts)
    if max(red, green, blue) > 255:
        raise UserError(f"'{line}' is no colour: its parts are 0 to 255.")
    return red, green, blue
