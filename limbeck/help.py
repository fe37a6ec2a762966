"""The help, made of the options' classes: fields, types, ranges, and the docstrings below fields.

No parser is built for it, and nothing is imported but these classes.
"""

import ast
import builtins
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from shutil import get_terminal_size
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from limbeck.errors import UserError, did_you_mean
from limbeck.verbs import ROOMS, VERBS

PAGE = 60
"""Lines of a verb's help, unless more is asked for."""
NARROWEST, WIDEST = 80, 120
COLUMN, THIN_COLUMN = 29, 40
"""Where the text beside long names begins, at most."""
FAR = 999
"""Limits as far out only catch slips of the keyboard, and are not told."""
FIRST = (
    *("task", "data", "student", "model", "teacher", "method", "arms", "out", "preset"),
    *("limits.params", "limits.macs", "limits.latency"),
    *("train.epochs", "train.global-batch-size", "seed", "seeds"),
)
"""What everybody sets."""


@dataclass(frozen=True)
class Option:
    """An option in words: its names with their dashes (or its place's), what it takes, default."""

    flags: tuple[str, ...]
    kind: str
    default: str
    doc: str

    @property
    def is_place(self) -> bool:
        """Whether it is given by its place on the command line, without a name."""
        return not self.flags[0].startswith("-")

    @property
    def head(self) -> str:
        """The name that people use."""
        names = self.flags[: 2 if len(self.flags[0]) == 2 else 1]
        if self.default == "on":  # so only the other name does anything
            names = (re.sub(r"^--(.*\.)?", r"\g<0>[no-]", names[0]),)
        return ", ".join(names)

    @property
    def facts(self) -> str:
        """What it takes, and what it is if not given."""
        return f"{self.kind}, default {self.default}" if self.default else self.kind

    def text(self, room: int) -> str:
        """What is said of it in short, in so many letters."""
        doc = _brief(self.doc)
        if " | " in self.kind and re.match(r"\S+: ", doc):  # each choice by its own word
            doc = ""
        facts = f"({self.facts})"
        if not doc or len(doc) + 1 + len(facts) <= room:
            return _shorten(f"{doc} {facts}", room)
        end = self.default and f" ({self.default})"
        return _shorten(doc, room - len(end)) + end

    def entry(self, width: int) -> list[str]:
        """All that is said of it."""
        head = f"{', '.join(self.flags)} ({self.facts})"
        return [*_wrap(head, width, "  "), *_wrap(self.doc, width, " " * 6, "")]


@dataclass(frozen=True)
class Section:
    """Options, and the sections within; the whole of a verb has no name."""

    name: str
    doc: str
    own: tuple[Option, ...]
    sections: tuple["Section", ...]

    def all_sections(self) -> Iterator["Section"]:
        """Itself, and those within."""
        yield self
        for section in self.sections:
            yield from section.all_sections()

    def named(self) -> dict[str, Option]:
        """Every option, of the sections within too, by each of its names."""
        return {
            flag.lstrip("-"): option
            for section in self.all_sections()
            for option in section.own
            for flag in option.flags
        }

    @property
    def head(self) -> str:
        """Its name, and how many options it has."""
        return f"{self.name} ({sum(len(section.own) for section in self.all_sections())})"

    def text(self, room: int) -> str:
        """What is said of it in short, in so many letters."""
        return _shorten(_brief(self.doc), room)


OVERVIEW = """\
usage: limbeck VERB [options]

Small vision Transformers by distillation during pre-training, on your own
images.
{verbs}

'limbeck VERB --help' tells a verb's options; '--preset NAME' starts from a
recipe; '--debug' shows the traceback of an error; '--version' the version.

First steps:
  limbeck demo
  limbeck doctor --data photos --teacher timm:vit_base_patch16_224.mae
  limbeck distill --data photos --teacher timm:vit_base_patch16_224.mae \\
      --preset photos_vit_tiny"""


def overview() -> str:
    """The text of ``limbeck --help``."""
    width = max(map(len, VERBS))
    lines = []
    for room, title in ROOMS.items():
        verbs = {name: verb.summary for name, verb in VERBS.items() if verb.room == room}
        lines += ["", f"{title}:"]
        lines += [f"  {name:<{width}}  {summary}" for name, summary in verbs.items()]
    return OVERVIEW.format(verbs="\n".join(lines))


def help_of(verb: str, config: Any, topic: str = "", method: str = "", preset: str = "") -> str:
    """The text of ``limbeck VERB --help TOPIC``, with the values of ``config`` as defaults.

    Without a topic all options are told if they fit on a page; else what everybody sets, the
    options of the ``method`` (the config's if not given), and every other section in a line. A
    topic is a section, a method, an option, or "all"; raises UserError for another.
    """
    width = min(max(get_terminal_size().columns, NARROWEST), WIDEST)
    root = read_section(config)
    places = "".join(f" {option.flags[0]}" for option in root.own if option.is_place)
    head = [f"usage: limbeck {verb} [options]{places}", ""]
    if verb in VERBS and (tasks := VERBS[verb].tasks):
        text = "What the network is for; each task has options of its own (--task NAME --help)."
        given = Option(("--task",), " | ".join(tasks), config.task, text)
        root = replace(root, own=(given, *root.own))
    if verb in VERBS and (of_verb := VERBS[verb].presets):
        text = f"A recipe to start from: limbeck presets {of_verb} lists them."
        given = Option(("--preset",), "name", "", text)
        root = replace(root, own=(*root.own, given))
    if topic not in ("", "all"):
        return "\n".join([*head, *_topic(root, verb, topic, width)])
    head += [*textwrap.wrap(root.doc, width), ""]
    if preset:
        head += [f"The defaults are those of the preset {preset}.", ""]
    pages = [_whole(root, width)]
    if not topic:
        method = method or getattr(config, "method", "")
        pages += [_folded(root, method, width, thin=thin) for thin in ("", "rest", "all")]
    page = next((page for page in pages if len(head) + len(page) <= PAGE), pages[-1])
    return "\n".join([*head, *page])


def _topic(root: Section, verb: str, topic: str, width: int) -> list[str]:
    """All that there is of a section or an option."""
    name = topic.lstrip("-").replace("_", "-")
    sections = {section.name: section for section in root.all_sections() if section.name}
    options = root.named()
    if name in sections:
        return _whole(sections[name], width)
    if name in options:
        return options[name].entry(width)
    raise UserError(
        f"limbeck {verb} has no section, method or option '{topic}'."
        f"{did_you_mean(name, ['all', *sections, *options])} 'limbeck {verb} --help' lists them."
    )


def _whole(root: Section, width: int) -> list[str]:
    """Every option of a section and of those within."""
    lines: list[str] = []
    for section in root.all_sections():
        title = f"{section.name}: {section.doc}" if section.name else "options:"
        entries = [line for option in section.own for line in option.entry(width)]
        lines += [*_wrap(title, width), *entries, ""]
    return lines[:-1]


def _folded(root: Section, method: str, width: int, *, thin: str) -> list[str]:
    """What everybody sets, the options of the method, and the rest in a line each.

    ``thin``: of "all" or of the "rest" no more is said than has room in a line.
    """
    from limbeck.methods import METHODS, TASK_METHODS

    options = root.named()
    first = [option for option in root.own if option.is_place]
    first += [options[name] for name in FIRST if name in options]
    more = [option for option in root.own if option not in first]
    methods = [each for each in root.sections if each.name in {*METHODS, *TASK_METHODS}]
    title = "what everybody sets (in brackets: what it takes, or its default):"
    lines = _block(title, first, width, is_thin=thin == "all")
    for each in methods:
        if each.name == method:
            title, items = f"the method {method}: {_brief(each.doc)}", (*each.own, *each.sections)
            lines += _block(title, items, width, is_thin=bool(thin))
    lines += _block("more:", more, width, is_thin=bool(thin))
    title = "sections, and how many options they have:"
    sections = [each for each in root.sections if each not in methods]
    lines += _block(title, sections, width, is_thin=True)
    if others := ", ".join(each.name for each in methods if each.name != method):
        lines += [*_wrap(f"sections of other methods: {others}", width), ""]
    return [*lines, "--help NAME tells all of a section, a method, an option; --help all, of all."]


def _wrap(text: str, width: int, indent: str = "", more: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent + more, break_on_hyphens=False
    )


def _block(
    title: str, items: Sequence[Option | Section], width: int, *, is_thin: bool = False
) -> list[str]:
    """A title, the items (names, and beside them what is said of them), and an empty line."""
    if not items:
        return []
    column = min(THIN_COLUMN if is_thin else COLUMN, 4 + max(len(item.head) for item in items))
    lines = _wrap(title, width)
    for item in items:
        start = f"  {item.head}"
        if len(start) + 2 > column:
            lines.append(start)
            start = ""
        text = item.text(width - column if is_thin else sys.maxsize)
        lines += _wrap(start.ljust(column) + text, width, more=" " * column)
    return [*lines, ""]


def _brief(doc: str) -> str:
    """The first sentence, or what stands before a semicolon or, if it says enough, a colon."""
    said = re.split(r"[.;](?:\s|$)", doc, maxsplit=1)[0]
    start = said.partition(": ")[0]
    return start if len(start.split()) > 3 else said


def _shorten(text: str, room: int) -> str:
    return textwrap.shorten(text, room, placeholder=" ...", break_on_hyphens=False)


def read_section(config: Any, path: str = "", doc: str = "") -> Section:
    """The options of a config in words; its values are the defaults."""
    from limbeck.config import is_record

    hints = get_type_hints(type(config), include_extras=True)
    own, sections = [], []
    for field in fields(config):
        name, value = f"{path}{field.name}", getattr(config, field.name)
        text = _doc(type(config), field.name)
        if is_dataclass(value):
            sections.append(read_section(value, f"{name}.", text))
        elif not is_record(hints[field.name]):
            own.append(_option(name.replace("_", "-"), hints[field.name], value, text))
    about = " ".join((type(config).__doc__ or "").partition("\n\n")[0].split())
    name = path.rstrip(".").replace("_", "-")
    return Section(name, f"{about} {doc}".strip(), tuple(own), tuple(sections))


def _option(path: str, hint: Any, value: Any, doc: str) -> Option:
    from tyro.conf import Positional

    from limbeck.config import negated

    marks = getattr(hint, "__metadata__", ())
    metavars = [each.metavar for each in marks if getattr(each, "metavar", None)]
    kind, default = _kind(hint), _words(value)
    if Positional[str].__metadata__[0] in marks:
        name = (metavars or [path.upper()])[0]
        return Option((f"{name} ..." if kind.endswith("...") else name,), kind, default, doc)
    aliases = [alias for each in marks for alias in getattr(each, "aliases", None) or ()]
    flags = sorted([*aliases, f"--{path}"], key=len)
    if isinstance(value, bool):
        flags += [negated(flag) for flag in flags if flag.startswith("--")]
    return Option(tuple(flags), kind, default, doc)


def _words(value: Any) -> str:
    """A default as the command line would have it; nothing where there is none."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return " ".join(map(_words, value))
    return "" if value is None else str(value)


def _kind(hint: Any, limits: tuple[Any, ...] = ()) -> str:
    """What an option takes, in words."""
    inner = get_args(hint)
    match get_origin(hint):
        case typing.Annotated:
            more = [limit for each in inner[1:] for limit in getattr(each, "metadata", (each,))]
            return _kind(inner[0], (*limits, *more))
        case typing.Literal:
            return " | ".join(map(str, inner))
        case types.UnionType | typing.Union:
            return _kind(next(each for each in inner if each is not NoneType), limits)
        case builtins.tuple:
            kind = _kind(inner[0])
            many = re.sub("number", "numbers", kind, count=1)
            if inner[-1] is not Ellipsis:
                return f"{len(inner)} {many}"
            return many if many != kind else f"some of {kind}" if "|" in kind else f"{kind} ..."
    if hint in (int, float):
        return _number(hint, limits)
    return {bool: "on/off", Path: "path"}.get(hint, "text")


def _number(hint: type, limits: tuple[Any, ...]) -> str:
    """A number and its range."""
    said = {"gt": "above", "ge": "from", "lt": "below", "le": "up to"}
    bounds = {name: getattr(each, name) for each in limits for name in said if hasattr(each, name)}
    for name, closed, step in (("gt", "ge", 1), ("lt", "le", -1)):
        if hint is int and name in bounds:
            bounds[closed] = bounds.pop(name) + step
    near = {name: bound for name, bound in bounds.items() if abs(bound) < FAR}
    words = "whole number" if hint is int else "number"
    if near.keys() == {"ge", "le"}:
        return f"{words} {near['ge']}..{near['le']}"
    return f"{words} {', '.join(f'{said[name]} {bound}' for name, bound in near.items())}".strip()


def _doc(kind: type, name: str) -> str:
    """What is written below a field, in its class or in the next one that it has it from."""
    docs = (_docs_of(each.__module__).get((each.__name__, name)) for each in kind.__mro__[:-1])
    return next(filter(None, docs), "")


@cache
def _docs_of(module: str) -> dict[tuple[str, str], str]:
    """What is written below the fields of a module's classes."""
    docs = {}
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))):
        if isinstance(node, ast.ClassDef):
            for field, below in pairwise(node.body):
                match field, below:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(text))),
                    ):
                        docs[node.name, name] = " ".join(text.split())
    return docs
