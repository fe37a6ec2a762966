"""Names of the vision Transformers, known without importing timm or torch (a second or more).

The names are read from timm's source files, so a typing error is answered at once and the list is
always the one of the installed version.
"""

import functools
import importlib.util
import re
from pathlib import Path

from limbeck.errors import UserError, did_you_mean

SHORT_NAMES = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "vit_huge": "vit_huge_patch14_224",
}

# The files whose models ``vit.VitEncoder`` takes.
_FILES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "beit")
_REGISTERED = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)
_TAGGED = re.compile(r"""^\s+['"](\w+\.[\w.-]+)\*?['"]:""", re.MULTILINE)


def known_model_names() -> list[str]:
    """Names of timm's vision Transformers (without pre-trained tags), sorted."""
    return sorted(_read_names(_REGISTERED))


def check_model_name(name: str, *, any_model: bool = False) -> str:
    """The full timm name for a short or full one; a pre-trained tag (``name.tag``) is kept.

    ``any_model``: of all of timm's, as a teacher of logits may be. Raises UserError for a model
    that is not supported, with the nearest name for an unknown one.
    """
    full = SHORT_NAMES.get(name, name)
    base, _, tag = full.partition(".")
    names = known_model_names()
    if any_model and base not in names:
        _check_any_name(base, tag)
        return full
    if base not in names:
        if base in _read_names(_REGISTERED, "*"):
            raise UserError(
                f"timm's '{base}' is not supported; choose a plain ViT, a DeiT, an EVA or a BEiT. "
                f"Short names: {', '.join(SHORT_NAMES)}."
            )
        tagged = sorted(_read_names(_TAGGED)) if tag else SHORT_NAMES
        hint = did_you_mean(name, [*tagged, *names])
        raise UserError(
            f"There is no vision Transformer '{name}' in timm.{hint} "
            f"Short names: {', '.join(SHORT_NAMES)}."
        )
    if tag:
        _check_tag(base, tag)
    return full


def _check_any_name(base: str, tag: str) -> None:
    names = _read_names(_REGISTERED, "*")
    if base not in names:
        hint = did_you_mean(base, sorted(names))
        raise UserError(f"There is no model '{base}' in timm.{hint}")
    if tag:
        _check_tag(base, tag, "*")


def _check_tag(base: str, tag: str, *files: str) -> None:
    # timm lists the tags of the "quickgelu" twins under their siblings' names.
    listed = base.replace("_quickgelu", "")
    pairs = (known.split(".", 1) for known in _read_names(_TAGGED, *files))
    tags = sorted(known_tag for known, known_tag in pairs if known == listed)
    if tag not in tags:
        raise UserError(
            f"timm has no weights '{tag}' for '{base}'.{did_you_mean(tag, tags)} "
            f"It has {', '.join(tags) or 'none'}."
        )


@functools.cache
def _read_names(pattern: re.Pattern[str], *files: str) -> frozenset[str]:
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        raise UserError("The package 'timm' is not installed; run: pip install timm.")
    folder = Path(spec.origin).parent / "models"
    return frozenset(
        name
        for file in files or _FILES
        for path in folder.glob(f"{file}.py")
        for name in pattern.findall(path.read_text(encoding="utf-8"))
    )
