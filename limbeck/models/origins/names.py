"""Whether a source of weights can be meant, decided from its name alone (torch is not imported)."""

import os
from pathlib import Path

from limbeck.config import has_own_module
from limbeck.errors import UserError, did_you_mean
from limbeck.models.shapes import check_model_name

SCHEMES = ("timm", "hf")


def split_source(source: str) -> tuple[str | None, str]:
    """(scheme, name) of ``timm:NAME`` or ``hf:NAME``; (None, source) of a path.

    A user's own ``module:function`` has the scheme "own" and is its own name.
    """
    scheme, colon, name = source.partition(":")
    # A single letter is a drive of Windows; what exists is a path, whatever it looks like.
    is_path = not colon or len(scheme) == 1 or os.sep in scheme or Path(source).exists()
    if is_path:
        return None, source
    is_own = scheme not in SCHEMES and name.isidentifier() and has_own_module(source)
    return ("own", source) if is_own else (scheme, name)


def check_source(source: str, *, any_model: bool = False) -> None:
    """Raise UserError for a source that can't be resolved: an unknown scheme, model or path.

    ``any_model``: timm's classifiers of other kinds, teachers of logits alone, will do as well. The
    hub is not asked. Well under a second, without importing torch.
    """
    scheme, name = split_source(source)
    if scheme is None:
        check_path(Path(name))
    elif scheme == "own":
        return  # imported, with torch, when it is needed
    elif scheme not in SCHEMES:
        raise UserError(
            f"'{source}': there is no scheme '{scheme}:'.{did_you_mean(scheme, SCHEMES)} "
            "A source is timm:NAME, hf:NAME, a path, or your own module:function."
        )
    elif not name:
        raise UserError(f"'{source}' names no model; write {scheme}:NAME.")
    elif scheme == "timm":
        check_model_name(name, any_model=any_model)
    elif not _is_repository(name):
        raise UserError(
            f"'{source}' is no name of a repository on the Hugging Face hub; write hf:OWNER/NAME, "
            "or a path without 'hf:'."
        )


def _is_repository(name: str) -> bool:
    parts = name.partition("@")[0].split("/")
    return len(parts) <= 2 and all(part.strip(".-") and " " not in part for part in parts)


def check_path(path: Path) -> None:
    """Raise UserError, with the nearest name, for a path that does not exist."""
    if path.exists():
        return
    parent = path.parent
    if not parent.is_dir():
        raise UserError(f"There is no file or folder {path}: {parent} does not exist.")
    hint = did_you_mean(path.name, sorted(entry.name for entry in parent.iterdir()))
    if not hint and parent == Path("."):
        hint = _meant_as_name(path.name)
    raise UserError(f"There is no file or folder {path}.{hint}")


def _meant_as_name(word: str) -> str:
    """A bare word may be a model's name without its scheme."""
    try:
        return f" Did you mean 'timm:{check_model_name(word)}'?"
    except UserError:
        return " A model's name is written timm:NAME or hf:NAME."
