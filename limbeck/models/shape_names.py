"""A student's name that says its shape: ``vit_tiny:depth=10:num_heads=6``.

One syntax wherever a student is named. Options are those of ``StudentOptions``; several numbers
are joined by "-" (``embed_dims=64-128-160-320``), since a comma separates the stages of a chain and
a space the words of a shell. No torch here, see ``limbeck.config``.
"""

from collections.abc import Mapping
from typing import Any

from limbeck.errors import UserError

JOINT = "-"


def split_shape(text: str) -> tuple[str, dict[str, Any]]:
    """The model's name and what is stated of its shape, not yet converted: words, or lists of them.

    Raises UserError for a word that is not OPTION=VALUE, and for an option that is stated twice.
    """
    name, *words = (word.strip() for word in text.strip().split(":"))
    stated: dict[str, Any] = {}
    for word in words:
        key, equals, value = (part.strip() for part in word.partition("="))
        key = key.replace("-", "_")
        if not (equals and key and value):
            raise UserError(
                f"'{word}' is not OPTION=VALUE; a student is a model's name and its shape, such as "
                "vit_tiny:num_heads=6:depth=10."
            )
        if key in stated:
            raise UserError(f"{key} is stated twice; leave one of them out.")
        stated[key] = value.split(JOINT) if JOINT in value else value
    return name, stated


def is_shape(text: str) -> bool:
    """Whether a name says a shape, so is no source such as ``timm:NAME``."""
    return ":" in text and "=" in text.partition(":")[2].partition(":")[0]


def join_shape(name: str, stated: Mapping[str, Any]) -> str:
    """The text from which ``split_shape`` reads the same again; None is not stated."""
    words = [f"{key}={_word(value)}" for key, value in stated.items() if value is not None]
    return ":".join([name, *words])


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return JOINT.join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
