"""JSON, TOML and YAML, ours and strangers': the one door through which they come in and go out.

What comes in is bounded in size and depth and checked against a type (a dataclass, a TypedDict, any
type that pydantic knows), so that the code behind it never meets a number where it takes a name.
"""

import functools
import json
import tomllib
from pathlib import Path
from typing import Any

import pydantic

from limbeck.errors import UserError
from limbeck.files import MIB, read_file, reason_of, write_bytes

MAX_BYTES = 64 * MIB  # the index of the largest sharded model has 2
MAX_DEPTH = 64

Plain = dict[str, Any]
"""A JSON object of which nothing more is known."""


def read_json(file: Path, kind: Any = Plain, *, max_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file as ``kind``, by default any object.

    Raises UserError where it can't be read, is no JSON, is too large or too deep, or is of another
    kind, and says where in it.
    """
    return parse_json(_read(file, "JSON", max_bytes), kind, str(file))


def parse_json(data: bytes | str, kind: Any = Plain, where: str = "the text") -> Any:
    """Likewise of text; ``where`` names it in errors."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        values = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"Can't read {where} as JSON: {_why(error)}.") from error
    return fit(values, kind, where)


def read_toml(file: Path, kind: Any = Plain) -> Any:
    """The content of a TOML file as ``kind``; raises UserError like ``read_json``."""
    return parse_toml(_read(file, "TOML", MIB), kind, str(file))


def parse_toml(data: bytes | str, kind: Any = Plain, where: str = "the text") -> Any:
    """Likewise of text; ``where`` names it in errors."""
    try:
        values = tomllib.loads(data if isinstance(data, str) else data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"Can't read {where} as TOML: {_why(error)}.") from error
    return fit(values, kind, where)


def read_yaml(file: Path, kind: Any = Plain) -> Any:
    """The content of a YAML file as ``kind``, where every value is text: a class called no is none
    that is false. Raises UserError like ``read_json``, and for references within it."""
    import yaml

    try:
        text = _read(file, "YAML", MIB).decode("utf-8-sig")
        depth = 0
        for event in yaml.parse(text):
            if isinstance(event, yaml.AliasEvent):  # a few lines of them can fill all memory
                raise ValueError("it has references (*name)")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise RecursionError
        values = yaml.load(text, Loader=yaml.BaseLoader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"Can't read {file} as YAML: {' '.join(_why(error).split())}.") from error
    return fit(values, kind, str(file))


def fit(values: object, kind: Any, where: str) -> Any:
    """Plain data as ``kind``; raises UserError that says which entry is not of it, and why."""
    if _is_too_deep(values):
        raise UserError(f"{where} is nested deeper than {MAX_DEPTH} levels; it is damaged.")
    try:
        return _adapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        raise UserError(_first_misfit(error, where)) from error
    except (RecursionError, OverflowError) as error:
        raise UserError(f"{where} holds what can't be read: {_why(error)}.") from error


def to_json(values: Any, indent: int | None = 2) -> str:
    """Plain data as JSON text that UTF-8 can hold and that reads back as it was.

    Letters stay letters, unless a name among them is no UTF-8 (of an old disk): then all that is
    not ASCII is escaped. Raises ValueError for infinity and NaN, which JSON has not.
    """
    text = json.dumps(values, indent=indent, allow_nan=False, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(values, indent=indent, allow_nan=False)
    return text


def as_read(values: Any) -> Any:
    """Plain data as JSON gives it back: tuples are lists, keys are text."""
    return json.loads(to_json(values))


def write_json(file: Path, values: Any) -> None:
    """Write plain data as readable JSON, whole or not at all; as ``write_whole``."""
    write_bytes(file, (to_json(values) + "\n").encode())


def flat(values: Plain, prefix: str = "") -> Plain:
    """Nested plain data by dotted name; an empty object stays one."""
    found: Plain = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differing(there: Plain, here: Plain) -> list[tuple[str, str, str]]:
    """(name, value there, value here), values as JSON or "absent", of flat plain data."""
    found = [(name, _short(there, name), _short(here, name)) for name in {**here, **there}]
    return [each for each in found if each[1] != each[2]]


def _short(values: Plain, name: str) -> str:
    return to_json(values[name], indent=None) if name in values else "absent"


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def _read(file: Path, form: str, max_bytes: int) -> bytes:
    try:
        return read_file(file, max_bytes)
    except (OSError, ValueError) as error:  # a name with a NUL
        raise UserError(f"Can't read {file} as {form}: {reason_of(error)}.") from error


def _is_too_deep(values: object) -> bool:
    # Without recursion: what is judged here would exhaust it.
    level = [values]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        if not inner:
            return False
        level = inner
    return any(isinstance(value, dict | list) for value in level)


def _first_misfit(error: pydantic.ValidationError, where: str) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    given = repr(problem["input"])
    given = given if len(given) <= 60 else given[:57] + "..."
    if not place:
        wanted = "an object" if "dict" in problem["type"] else problem["msg"].partition(" be ")[2]
        return f"{where} holds {given}, not {wanted}; it is damaged or something else."
    if problem["type"] == "missing":
        return f"{where} has no entry '{place}'; it is damaged or something else."
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: the entry '{place}' is {given}: {message[:1].lower()}{message[1:]}."


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which JSON does not have")


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return str(error).rstrip(".")
