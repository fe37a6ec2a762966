"""Typed, strict configuration: defaults <- TOML preset <- command line; saved as JSON.

A config is a frozen, keyword-only dataclass validated by pydantic. Config classes never import
torch: a mistake in an option is answered before torch would have been loaded (1.5 s). That is why
each floor keeps its option classes in an ``options.py`` of its own instead of above the torch class
that they configure.
"""

import dataclasses
import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, dataclass_transform, get_type_hints

import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from limbeck.documents import parse_toml, read_toml
from limbeck.errors import UserError, did_you_mean
from limbeck.papers import of_paper

T = TypeVar("T")

PRESETS_DIR = Path(__file__).parent / "presets"

# The ranges of all numeric options (a house test wants one of each): beyond them a number is a slip
# of the keyboard, and would end in an overflow or take all memory.
PositiveInt = Annotated[int, pydantic.Field(gt=0, lt=2**31)]
NotNegativeInt = Annotated[int, pydantic.Field(ge=0, lt=2**31)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0, le=1e6)]
NotNegative = Annotated[float, pydantic.Field(ge=0, le=1e6)]
Probability = Annotated[float, pydantic.Field(ge=0, le=1)]
Rate = Annotated[float, pydantic.Field(ge=0, lt=1)]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**63)]
Epochs = Annotated[float, pydantic.Field(gt=0, le=1e6)]
BatchSize = Annotated[int, pydantic.Field(gt=0, le=2**20)]
Repeats = Annotated[int, pydantic.Field(gt=0, le=1000)]
"""Of runs, draws or measurements."""
Few = Annotated[int, pydantic.Field(ge=0, le=1000)]
NumWorkers = Annotated[int, pydantic.Field(ge=0, le=1024)]
NumThreads = Annotated[int, pydantic.Field(gt=0, le=1024)]
Side = Annotated[int, pydantic.Field(gt=0, le=2**13)]
"""Of an image or a patch, in pixels."""
Width = Annotated[int, pydantic.Field(gt=0, le=2**18)]
"""Channels, heads or prototypes."""
Depth = Annotated[int, pydantic.Field(gt=0, le=1000)]
BlockIndex = Annotated[int, pydantic.Field(gt=-1000, lt=1000)]
"""Negative ones count from the end."""


RECORD = "what a run writes down, and no option"
"""The mark of such a field, beside tyro.conf.Suppress."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def options(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only, validated dataclass; unknown keys are errors.

    A value of a wrong type or out of range, or a text that holds a NUL, raises UserError, in one
    sentence.
    """
    check = getattr(cls, "__post_init__", lambda self: None)

    def post_init(self: Any) -> None:
        for name, value in vars(self).items():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str | Path) and "\0" in str(text):
                    raise UserError(f"{name} = {str(text)!r} holds a NUL, which no name can.")
        check(self)

    cast("Any", cls).__post_init__ = post_init
    strict = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    made: Any = pydantic_dataclass(frozen=True, kw_only=True, config=strict)(cls)
    validate = made.__init__

    @functools.wraps(validate)
    def init(self: Any, **values: Any) -> None:
        try:
            validate(self, **values)
        except pydantic.ValidationError as error:
            raise UserError(_first_problem(error, cls.__name__)) from error

    made.__init__ = init
    return cast("type[T]", made)


def to_plain(config: Any) -> dict[str, Any]:
    """The config as JSON-ready plain data."""
    plain: dict[str, Any] = pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")
    return plain


def from_plain(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Build a config of class ``kind`` from nested dictionaries.

    ``where`` names the origin in errors. Raises UserError for an unknown key (with the nearest
    real one) and for a wrong type or range. What a section does not list keeps the default that
    ``kind`` gives it, which may differ from that of the section's own class.
    """
    _check_keys(kind, values, where, prefix="")
    try:
        return pydantic.TypeAdapter(kind).validate_python(_complete(kind, values))
    except pydantic.ValidationError as error:
        raise UserError(_first_problem(error, where)) from error


def read_values(lines: Sequence[str], option: str) -> dict[str, Any]:
    """Values given as NAME=VALUE, as in TOML; raises UserError that names the ``option``."""
    try:
        return parse_toml("\n".join(lines), where="it")
    except UserError as error:
        raise UserError(
            f"{option} {' '.join(lines)}: not NAME=VALUE as in TOML ({error.__cause__})."
        ) from error


def _check_keys(kind: type, values: dict[str, Any], where: str, prefix: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in fields:
            raise UserError(
                f"{where}: there is no option '{prefix}{key}'.{did_you_mean(key, fields)}"
            )
        section = fields[key].default
        if isinstance(value, dict) and dataclasses.is_dataclass(section):
            _check_keys(type(section), value, where, prefix=f"{prefix}{key}.")


def _complete(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    complete = dict(values)
    for field in dataclasses.fields(kind):
        section, value = field.default, values.get(field.name)
        if isinstance(value, dict) and dataclasses.is_dataclass(section):
            assert not isinstance(section, type)
            complete[field.name] = dataclasses.asdict(section) | _complete(type(section), value)
    return complete


def _first_problem(error: pydantic.ValidationError, where: str) -> str:
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"]) or "the config"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{where}: {name} = {problem['input']!r} is refused: {message}."


def as_flags(text: str, kind: type, words: Sequence[str] = ()) -> str:
    """An error's sentence with options as the command line writes them.

    train.global_batch_size, and what is said of it by its last name alone, becomes
    --train.global-batch-size; of several sections with the same name the one that the ``words`` of
    the command line or the sentence itself have. What presets and arms say stays as it is there.
    """
    if text.startswith(("preset ", "arm '")):
        return text
    owners = dict(option_paths(kind))
    flags = {path: f"--{path.replace('_', '-')}" for path in owners}
    given = {word.partition("=")[0] for word in words}

    def nearest(paths: list[str]) -> str | None:
        sections = [path.rpartition(".")[0] + "." for path in paths]
        near = [
            path
            for path, section in zip(paths, sections, strict=True)
            if flags[path] in given or (section != "." and section in text)
        ]
        return near[0] if near else paths[0] if len(paths) == 1 else None

    refused = re.match(r"(\w+): (\w+)(?:\.\d+)* = (.*)", text, re.DOTALL)
    if refused:
        where, name, rest = refused.groups()
        paths = [
            path
            for path, owner in owners.items()
            if owner == where and path.rpartition(".")[2] == name
        ]
        if paths:
            return f"{flags[nearest(paths) or paths[0]]} {rest}"

    def dotted(match: re.Match[str]) -> str:
        return flags.get(match[0], match[0])

    def bare(match: re.Match[str]) -> str:
        paths = [path for path in flags if path.rpartition(".")[2] == match[0]]
        path = nearest(paths) if paths else None
        return flags[path] if path else match[0]

    text = re.sub(r"^\w+(?= has no effect)", dotted, text)
    text = re.sub(r"(?<![\w./\\'\":-])\w+(\.\w+)+(?![\w/-])", dotted, text)
    return re.sub(r"(?<![\w./\\'\":-])[a-z]+(_[a-z]+)+(?![\w/(-]|\.\w)", bare, text)


def option_paths(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted name of every option, and the class that has it."""
    for field in dataclasses.fields(kind):
        path = f"{prefix}{field.name}"
        yield path, kind.__name__
        if dataclasses.is_dataclass(field.default):
            yield from option_paths(type(field.default), f"{path}.")


def option_flags(kind: type, prefix: str = "") -> Iterator[str]:
    """Every option as the command line writes it: dotted, negated, short and long other names."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if is_record(hints[field.name]):
            continue
        path = f"{prefix}{field.name}"
        flag = path.replace("_", "-")
        if dataclasses.is_dataclass(field.default):
            yield from option_flags(type(field.default), f"{path}.")
            continue
        names = [f"--{flag}"]
        for extra in getattr(hints[field.name], "__metadata__", ()):
            names += getattr(extra, "aliases", None) or ()
        yield from names
        if isinstance(field.default, bool):
            yield from (negated(name) for name in names if name.startswith("--"))


def negated(flag: str) -> str:
    """What switches an option off: --data.no-shuffle of --data.shuffle."""
    start, dot, last = flag.removeprefix("--").rpartition(".")
    return f"--{start}{dot}no-{last}"


def is_record(hint: Any) -> bool:
    """Whether a field, by its type, is a ``RECORD``."""
    return RECORD in getattr(hint, "__metadata__", ())


class _PresetHead(TypedDict, total=False):
    """What a preset says of itself, beside its options' values."""

    __pydantic_config__ = pydantic.ConfigDict(extra="allow")

    verb: str
    summary: Annotated[str, pydantic.Field(min_length=1, max_length=60, pattern=r"^[^\n]*$")]


def preset_summaries(verb: str) -> dict[str, str]:
    """The shipped presets of a verb ('distill', 'finetune', ...), each with its summary."""
    heads = {file.stem: read_toml(file, _PresetHead) for file in sorted(PRESETS_DIR.glob("*.toml"))}
    return {name: head["summary"] for name, head in heads.items() if head["verb"] == verb}


def preset_names(verb: str) -> list[str]:
    """Names of the shipped presets of a verb."""
    return list(preset_summaries(verb))


def preset_file(name: str) -> Path:
    """Where a preset is, or would be: by shipped name or by the path of a TOML file."""
    return Path(name) if name.endswith(".toml") else PRESETS_DIR / f"{name}.toml"


def read_preset(name: str, verb: str) -> dict[str, Any]:
    """Values of a preset, by shipped name or by the path of a TOML file.

    Raises UserError for an unknown name, a file that is no TOML, or a preset of another verb.
    """
    file = preset_file(name)
    if not file.is_file():
        names = preset_names(verb)
        raise UserError(
            f"There is no preset '{name}' for 'limbeck {verb}'."
            f"{of_paper(name) or did_you_mean(name, names)} "
            f"'limbeck presets {verb}' lists them; or pass the path of a .toml file."
        )
    values: dict[str, Any] = read_toml(file, _PresetHead)
    values.pop("summary", None)
    of_verb = values.pop("verb", verb)
    if of_verb != verb:
        raise UserError(f"The preset '{name}' is for 'limbeck {of_verb}', not 'limbeck {verb}'.")
    return values


def has_own_module(address: str) -> bool:
    """Whether the module of a user's "module:Name" can be found, in the working folder too."""
    # A script's own folder is on the path already; for a command that is the working folder.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.util.find_spec(address.partition(":")[0]) is not None
    except (ImportError, ValueError):
        return False


def import_own(address: str, what: str) -> Any:
    """What "module:Name" names; raises UserError where there is no such module or name."""
    module, _, name = address.partition(":")
    if not has_own_module(address):
        raise UserError(f"{what} '{address}': there is no module '{module}' here or installed.")
    names = vars(importlib.import_module(module))
    if name not in names:
        raise UserError(
            f"{what} '{address}': the module has no '{name}'.{did_you_mean(name, names)}"
        )
    return names[name]
