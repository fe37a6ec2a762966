"""Weights files of Hiera, Swin and TinyViT, recognised by the names of their tensors.

Names and shapes tell all but a Hiera's head counts, which follow from its width, and the image
size, which is assumed to be the one that a Swin's last window covers. Every layout comes out in
timm's names; that every tensor fits is checked by whoever loads them.
"""

import re
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.origins.architecture import read_grid, to_ratio
from limbeck.models.origins.companions import SPARE_BLOCK
from limbeck.models.origins.layouts import (
    Grid,
    Weights,
    check_telling,
    depth_of,
    rename,
    sort_out,
    spread_heads,
)
from limbeck.models.origins.tiny_vit import is_published, is_timms, read_arguments, timm_name
from limbeck.models.shapes import pooling_of

# Heads of the first stage, doubled from stage to stage: Hiera's own sizes (arXiv 2306.00989), and
# the width 46 of arXiv 2404.12210.
HIERA_HEADS = {46: 1, 96: 1, 112: 2, 144: 2, 256: 4}
_PATCH_STRIDE = 4  # of every Hiera; its convolution is wider, 7 x 7

# Not of the encoder: what a name begins with.
_BESIDE = {
    "decoder": "the decoder",
    "multi_scale_fusion_heads.": "the decoder's fusion of stages",
    "mask_token": "the mask token of its pre-training",
}
_COMPUTED = ("relative_position_index", "attn_mask", "attention_bias_idxs")


@dataclass(frozen=True)
class Staged:
    """What a file of a hierarchical encoder holds.

    ``weights`` are in timm's names. ``left_out`` names what is no part of the encoder, by what it
    is. ``architecture`` lacks only mean and std. ``grid`` is that of the position table, which only
    a Hiera has. ``notes`` say what of the file is not used as it is. ``mask_token`` (1, 1, D) stood
    for hidden patches in its pre-training.
    """

    layout: str
    description: str
    weights: Weights
    architecture: dict[str, Any]
    num_heads: tuple[int, ...]
    heads_known_from: str = "the tables of its relative positions"
    grid: Grid = (0, 0)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    mask_token: Tensor | None = None


def read_staged(
    weights: Weights, img_size: Grid | None = None, num_heads: int | tuple[int, ...] | None = None
) -> Staged | None:
    """The Hiera, Swin or TinyViT in these tensors; None where they are of none.

    ``img_size`` (H, W): where the tensors do not tell it. ``num_heads``: of a Hiera of another
    width than the published ones. Raises UserError where something needed is not told.
    """
    if any(name.startswith("encoder.patch_embed.") for name in weights):  # SimMIM's
        weights = rename(weights, lambda name: name.removeprefix("encoder."))
    is_swin = "layers.0.blocks.0.attn.relative_position_bias_table" in weights
    is_hiera = {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= weights.keys() and any(
        re.fullmatch(r"blocks\.\d+\.proj\.weight", name) for name in weights
    )
    is_tiny_vit = is_published(weights) or is_timms(weights)
    if not (is_swin or is_hiera or is_tiny_vit):
        return None
    kept, left = sort_out(weights, _what_beside)
    if is_tiny_vit:
        return _read_tiny_vit(kept, left, weights.get("mask_token"), num_heads)
    if is_swin:
        return _read_swin(kept, left, weights.get("mask_token"), img_size, num_heads)
    return _read_hiera(kept, left, img_size, num_heads)


def _what_beside(name: str) -> str | None:
    if name.endswith(_COMPUTED):
        return "tables that are computed"
    return next((what for start, what in _BESIDE.items() if name.startswith(start)), None)


_FAMILIES = {"hiera": "Hiera", "swin": "Swin", "tiny_vit": "TinyViT"}


def _staged(
    layout: str, is_published: bool, name: str, kwargs: dict[str, Any], heads: tuple[int, ...],
    **others: Any,
) -> Staged:  # fmt: skip
    family = _FAMILIES[layout]
    return Staged(
        layout=layout if is_published else f"timm_{layout}",
        description=f"{family} as published by its authors"
        if is_published
        else f"a {family} in timm's names",
        architecture={"kind": "timm", "name": name, "kwargs": kwargs, "num_heads": list(heads)},
        num_heads=heads,
        **others,
    )


def _check_heads(layout: str, heads: tuple[int, ...], asked: int | tuple[int, ...] | None) -> None:
    if asked is not None and spread_heads(asked, len(heads)) != heads:
        raise UserError(
            f"The tables of this {_FAMILIES[layout]}'s relative positions are for "
            f"{', '.join(map(str, heads))} heads; leave num_heads away."
        )


# --- Hiera ---------------------------------------------------------------------------------------


def _read_hiera(
    weights: Weights,
    left: dict[str, list[str]],
    img_size: Grid | None,
    num_heads: int | tuple[int, ...] | None,
) -> Staged:
    is_published = any(
        name.startswith(("encoder_norm.", "norm.", "head.projection.")) for name in weights
    )
    weights = rename(weights, _hiera_name)
    telling = {"patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2, "head.fc.weight": 2}
    check_telling(weights, telling, ("head.fc.weight",), "Hiera", depth_of(weights))
    positions = weights.get("pos_embed")
    if positions is None or positions.ndim != 3:
        raise UserError(
            "A Hiera whose positions are no table of its tokens: name the model "
            "(model_name='hiera_small_abswin_256')."
        )
    width, depth = weights["patch_embed.proj.weight"].shape[0], depth_of(weights)
    starts = [k for k in range(depth) if k == 0 or f"blocks.{k}.proj.weight" in weights]
    stages = [b - a for a, b in zip(starts, [*starts[1:], depth], strict=True)]
    heads, known_from = _hiera_heads(width, stages, num_heads)
    grid, _ = read_grid(positions.shape[1], [0], _PATCH_STRIDE, img_size)
    num_classes = weights["head.fc.weight"].shape[0] if "head.fc.weight" in weights else 0
    name = "hiera_tiny_224"  # any of timm's: what differs is stated
    kwargs = {
        "img_size": [side * _PATCH_STRIDE for side in grid],
        "embed_dim": width,
        "num_heads": heads[0],
        "stages": stages,
        "mlp_ratio": to_ratio(weights["blocks.0.mlp.fc1.weight"].shape[0], width),
        "num_classes": num_classes,
        "global_pool": "avg",
    } | pooling_of(name, num_classes)
    return _staged(
        *("hiera", is_published, name, kwargs, heads),
        weights=weights,
        grid=grid,
        heads_known_from=known_from,
        left_out=left,
    )


def _hiera_name(name: str) -> str:
    name = re.sub(r"^head\.projection\.", "head.fc.", name)
    return re.sub(r"^(encoder_)?norm\.", "head.norm.", name)


def _hiera_heads(
    width: int, stages: list[int], num_heads: int | tuple[int, ...] | None
) -> tuple[tuple[int, ...], str]:
    if num_heads is not None:
        return spread_heads(num_heads, sum(stages)), "given by the caller"
    if width not in HIERA_HEADS:
        raise UserError(
            f"A weights file does not store head counts, and of a Hiera {width} wide they are not "
            "known; name one for every block (num_heads=(...))."
        )
    counts = [
        HIERA_HEADS[width] * 2**stage for stage, depth in enumerate(stages) for _ in range(depth)
    ]
    return tuple(counts), f"usual for a Hiera {width} wide"


# --- Swin ----------------------------------------------------------------------------------------


def _read_swin(
    weights: Weights,
    left: dict[str, list[str]],
    mask_token: Tensor | None,
    img_size: Grid | None,
    num_heads: int | tuple[int, ...] | None,
) -> Staged:
    # timm merges tokens at the start of a stage, so that its first has no merging.
    is_published = "layers.0.downsample.reduction.weight" in weights
    if is_published:
        weights = rename(weights, _swin_name)
    weights, spare = _without_spare_block(weights)
    depths = _swin_depths(weights)
    of_tables = [
        f"layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(len(depths))
    ]
    telling = dict.fromkeys(of_tables, 2) | {
        "patch_embed.proj.weight": 4, "layers.0.blocks.0.mlp.fc1.weight": 2, "head.fc.weight": 2,
        f"layers.{len(depths) - 1}.blocks.0.norm1.weight": 1,
    }  # fmt: skip
    check_telling(weights, telling, ("head.fc.weight",), "Swin", min(depths))
    notes: tuple[str, ...] = ()
    if spare:
        left = left | {SPARE_BLOCK: spare}
        width = weights[f"layers.{len(depths) - 1}.blocks.0.norm1.weight"].shape[0]
        weights |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
        notes = (
            "The final norm starts fresh: what its pre-training decoded were the tokens of an "
            "earlier stage (arXiv 2404.12210).",
        )
    tables = [weights[name] for name in of_tables]
    heads = tuple(
        table.shape[1] for table, depth in zip(tables, depths, strict=True) for _ in range(depth)
    )
    _check_heads("swin", heads, num_heads)
    width, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
    windows = [(isqrt(table.shape[0]) + 1) // 2 for table in tables]
    side = patch_size * 2 ** (len(depths) - 1) * windows[-1]
    kwargs = {
        "img_size": list(img_size or (side, side)),
        "patch_size": patch_size,
        "embed_dim": width,
        "depths": depths,
        "num_heads": [table.shape[1] for table in tables],
        "window_size": windows[0],
        "mlp_ratio": to_ratio(weights["layers.0.blocks.0.mlp.fc1.weight"].shape[0], width),
        "num_classes": weights["head.fc.weight"].shape[0] if "head.fc.weight" in weights else 0,
        "global_pool": "avg",
    }
    name = "swin_tiny_patch4_window7_224"  # any of timm's: what differs is stated
    return _staged(
        *("swin", is_published, name, kwargs, heads),
        weights=weights,
        left_out=left,
        notes=notes,
        mask_token=mask_token,
    )


def _swin_name(name: str) -> str:
    moved = re.sub(
        r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name
    )
    return re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", moved)


def _swin_depths(weights: Weights) -> list[int]:
    found = [re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name) for name in weights]
    blocks = {(int(m[1]), int(m[2])) for m in found if m}
    return [sum(stage == s for s, _ in blocks) for stage in sorted({s for s, _ in blocks})]


def _without_spare_block(weights: Weights) -> tuple[Weights, list[str]]:
    """The weights without a last block that has a norm, queries and keys alone (D2-MAE)."""
    depths = _swin_depths(weights)
    start = f"layers.{len(depths) - 1}.blocks.{depths[-1] - 1}."
    is_whole = f"{start}norm1.weight" not in weights or f"{start}mlp.fc1.weight" in weights
    if depths[-1] < 2 or is_whole:
        return weights, []
    spare = [name for name in weights if name.startswith(start)]
    return {name: value for name, value in weights.items() if name not in spare}, spare


# --- TinyViT -------------------------------------------------------------------------------------


def _read_tiny_vit(
    weights: Weights,
    left: dict[str, list[str]],
    mask_token: Tensor | None,
    num_heads: int | tuple[int, ...] | None,
) -> Staged:
    is_own = is_published(weights)
    if is_own:
        weights = rename(weights, timm_name)
    name, arguments, heads = read_arguments(weights)
    _check_heads("tiny_vit", heads, num_heads)
    return _staged(
        *("tiny_vit", is_own, name, arguments, heads),
        weights=weights,
        left_out=left,
        mask_token=mask_token,
    )
