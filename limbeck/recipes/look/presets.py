"""``limbeck presets``: which recipes there are, or one of them."""

import re
import textwrap
from dataclasses import dataclass
from typing import Annotated

import tyro

from limbeck.config import options, preset_file, preset_summaries
from limbeck.errors import UserError, did_you_mean
from limbeck.files import read_file
from limbeck.papers import of_paper
from limbeck.verbs import VERBS

_WIDTH = 80


@options
class PresetsConfig:
    """List the presets (recipes as numbers) by the verbs that take them, or show one.

    What is shown is a preset itself: keep it as mine.toml, change it, and use --preset mine.toml.
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    """A verb, or a preset: its name, or the path of a .toml file. All are listed if not given."""


@dataclass(frozen=True)
class Presets:
    """Summaries of presets by verb and name; of a single preset its TOML text."""

    summaries: dict[str, dict[str, str]]
    text: str = ""


def presets(config: PresetsConfig) -> Presets:
    """Find the presets, or one; raises UserError where there is none of that name."""
    of_verb = {
        verb: preset_summaries(verb) for verb, entry in VERBS.items() if entry.presets == verb
    }
    name = config.name
    if not name:
        return Presets(of_verb)
    if name in VERBS:
        verb = VERBS[name].presets
        if verb is None:
            raise UserError(f"'limbeck {name}' has no presets; {', '.join(of_verb)} have some.")
        return Presets({verb: of_verb[verb]})
    file = preset_file(name)
    if not file.is_file():
        known = [each for names in of_verb.values() for each in names]
        raise UserError(
            f"There is no preset or verb '{name}'.{of_paper(name) or did_you_mean(name, known)} "
            "'limbeck presets' lists them."
        )
    return Presets({}, read_file(file, 2**20).decode("utf-8-sig", "replace"))


def report(found: Presets) -> str:
    """The list for people; of a preset its text, in lines of a terminal's width."""
    if found.text:
        return _narrow(found.text)
    blocks = []
    for verb, summaries in found.summaries.items():
        takers = [name for name, entry in VERBS.items() if entry.presets == verb != name]
        users = [f"limbeck {verb}", *takers]
        width = max(map(len, summaries))
        yours_first = sorted(summaries.items(), key=_rank)
        lines = [f"  {name:<{width}}  {summary}" for name, summary in yours_first]
        blocks.append("\n".join([f"{', '.join(users)} --preset NAME:", *lines]))
    return "\n\n".join([*blocks, "'limbeck presets NAME' shows one."])


def _rank(preset: tuple[str, str]) -> tuple[bool, bool]:
    name, summary = preset
    return "begin here" not in summary, not name.startswith("photos")


def _narrow(text: str) -> str:
    """TOML text with its comments in lines of a terminal's width."""
    lines = []
    # Paragraphs of a comment; what is indented in one is a command line, which stays as it is.
    for part in re.findall(r"(?:^# \S.*\n?)+|^.*\n?", text, flags=re.MULTILINE):
        if part.startswith("# ") and part[2:3] != " ":
            words = part.replace("\n# ", " ")[2:]
            part = textwrap.fill(words, _WIDTH, initial_indent="# ", subsequent_indent="# ")
        lines.append(part.rstrip("\n"))
    return "\n".join(lines).rstrip()
