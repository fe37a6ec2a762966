"""The command line that a run was made with, from its config.json: what differs from defaults."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from limbeck.config import from_plain
from limbeck.verbs import config_class

NOT_OPTIONS = ("verb", "resolved", "overwrite")


def command_of(plain: Mapping[str, Any]) -> str:
    """``limbeck VERB --option value ...`` of the plain data in a run's config.json.

    Automatic values are stated as they were settled. Raises UserError for a config that this
    version does not know.
    """
    verb = str(plain["verb"])
    kind = config_class(verb)
    config = from_plain(kind, {k: v for k, v in plain.items() if k not in NOT_OPTIONS}, "the run")
    words = ["limbeck", verb, *_words(config, kind(), "")]
    return shlex.join(words)


def _words(config: Any, default: Any, prefix: str) -> Iterator[str]:
    for field in fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name, None)
        name = f"{prefix}{field.name.replace('_', '-')}"
        if value == usual or value is None:
            continue
        if is_dataclass(value):
            inner = usual if type(usual) is type(value) else type(value)()
            yield from _words(value, inner, f"{name}.")
        elif isinstance(value, bool):
            head, dot, last = name.rpartition(".")
            yield f"--{name}" if value else f"--{head}{dot}no-{last}"
        elif isinstance(value, tuple):
            yield from (f"--{name}", *map(str, value))
        else:
            yield from (f"--{name}", str(value))
