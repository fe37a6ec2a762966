"""Names of the vision Transformers, known without importing timm or torch (a second or more).

The names are read from timm's source files, so a typing error is answered at once and the list is
always the one of the installed version.
"""

import functools
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from limbeck.errors import UserError, did_you_mean
from limbeck.models.budgets import is_budget

SHORT_NAMES = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "vit_huge": "vit_huge_patch14_224",
    "hiera_46": "hiera_tiny_224",
    "swin_48": "swin_tiny_patch4_window7_224",
    "tiny_vit_5m": "tiny_vit_5m_224",
    "tiny_vit_11m": "tiny_vit_11m_224",
    "tiny_vit_21m": "tiny_vit_21m_224",
}
_NARROWED = {"hiera_46": {"embed_dim": 46}, "swin_48": {"embed_dim": 48}}
"""What a short name says besides: the "tiny" Hiera and Swin of arXiv 2404.12210."""

OF_TINY_VIT = ("embed_dims", "depths", "window_sizes", "head_dim", "mbconv_expand_ratio")
"""What only a TinyViT's shape has."""

_HIERARCHICAL = ("hiera", "swin_transformer", "tiny_vit")
# The files whose models ``models.vit.build_encoder`` takes.
_FILES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "beit", *_HIERARCHICAL)
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
    if is_budget(name):
        raise UserError(
            f"'{name}' is a budget, for which limbeck distill, compare and search choose a "
            "student; name one here, such as vit_tiny."
        )
    full = SHORT_NAMES.get(name, name)
    base, _, tag = full.partition(".")
    names = known_model_names()
    if any_model and base not in names:
        _check_any_name(base, tag)
        return full
    if base not in names:
        if base in _read_names(_REGISTERED, "*"):
            raise UserError(
                f"timm's '{base}' is not supported; choose a plain ViT, a DeiT, an EVA, a BEiT, a "
                f"Hiera, a Swin or a TinyViT. "
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


def narrowed(name: str) -> dict[str, int]:
    """The arguments of timm in which a short name differs from the full one; mostly none."""
    return dict(_NARROWED.get(name, {}))


def is_hierarchical(name: str) -> bool:
    """Whether tokens are merged on the way (a full timm name, with or without a tag)."""
    return name.partition(".")[0] in _read_names(_REGISTERED, *_HIERARCHICAL)


def is_tiny_vit(name: str) -> bool:
    """Whether it is a TinyViT (a full timm name, with or without a tag)."""
    return name.partition(".")[0] in _read_names(_REGISTERED, "tiny_vit")


def pooling_of(name: str, num_classes: int) -> dict[str, int]:
    """How often a Hiera pools, as timm's argument: twice in pre-training, else three times.

    Arxiv 2306.00989: the last tokens then stand for 16 x 16 pixels, of a classifier 32 x 32. The
    weights are the same. Of other models nothing.
    """
    is_hiera = name.partition(".")[0] in _read_names(_REGISTERED, "hiera")
    return {"q_pool": 3 if num_classes else 2} if is_hiera else {}


def check_stated(name: str, stated: Iterable[str]) -> None:
    """Raise UserError for an option of the shape that the model does not have."""
    full = check_model_name(name)
    if is_tiny_vit(full):
        usable: tuple[str, ...] = ("img_size", "mlp_ratio", *OF_TINY_VIT)
    elif is_hierarchical(full):
        usable = ("img_size", "embed_dim", "mlp_ratio")
    else:
        usable = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    if wrong := [option for option in stated if option not in usable]:
        kind = "built of stages" if is_hierarchical(full) else "no TinyViT"
        raise UserError(
            f"'{name}' is {kind}, so {', '.join(wrong)} can't be set; of its shape only "
            f"{', '.join(usable)} can."
        )


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
