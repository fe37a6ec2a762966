"""The architecture of a plain ViT, read from its tensors (timm's names)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

from limbeck.errors import UserError
from limbeck.models.origins.layouts import Grid, Weights, check_telling, depth_of


@dataclass(frozen=True)
class VitShape:
    """What the tensors of a ViT in timm's names tell of it.

    ``grid`` is that of the position table; ``num_prefix_rows`` are its rows without a place in the
    image. ``hidden_dim`` is the width of ``mlp.fc1``; ``is_gated``: half of it are gates.
    ``out_dim`` is the width of TinyMIM*'s wide tokens; it and ``fc_norm_dim`` are 0 without.
    ``has_separate_bias``: queries and values have biases of their own and keys have none (BEiT).
    ``num_heads`` is told by a table of relative positions alone, 0 without; ``is_shared``: all
    blocks have the same one. ``has_head_on_cls``: a second classifier reads the class token.
    """

    embed_dim: int
    depth: int
    patch_size: int
    grid: Grid
    num_prefix_rows: int
    hidden_dim: int
    has_cls_token: bool
    has_dist_token: bool
    num_reg_tokens: int
    has_qkv_bias: bool
    has_qk_norm: bool
    has_layer_scale: bool
    has_pre_norm: bool
    is_gated: bool
    global_pool: str
    num_classes: int
    out_dim: int
    fc_norm_dim: int
    has_separate_bias: bool = False
    num_heads: int = 0
    is_shared: bool = False
    has_head_on_cls: bool = False

    @property
    def img_size(self) -> Grid:
        """Height and width in pixels that the position table is for."""
        return self.grid[0] * self.patch_size, self.grid[1] * self.patch_size


# The tensors that tell the shape, and how many axes they have; some may be absent.
_NUM_AXES = {
    "patch_embed.proj.weight": 4, "blocks.0.attn.qkv.weight": 2, "blocks.0.mlp.fc1.weight": 2,
    "blocks.0.mlp.fc2.weight": 2, "pos_embed": 3, "reg_token": 3, "head.weight": 2,
    "conv1x1.1.weight": 2, "fc_norm.weight": 1, "blocks.0.attn.relative_position_bias_table": 2,
    "rel_pos_bias.relative_position_bias_table": 2,
}  # fmt: skip
_TABLES = tuple(name for name in _NUM_AXES if name.endswith("_table"))
_OPTIONAL = ("reg_token", "head.weight", "conv1x1.1.weight", "fc_norm.weight", *_TABLES)


def read_shape(weights: Weights, img_size: Grid | None = None) -> VitShape:
    """Read a ViT's shape. ``img_size`` (H, W): where its patches are as many as the positions, the
    grid is that of this size; else, and where it is not stated, a square.

    Raises UserError where a needed tensor is missing or the position table fits no grid.
    """
    check_telling(weights, _NUM_AXES, _OPTIONAL, "ViT", depth_of(weights))
    patch_weight = weights["patch_embed.proj.weight"]  # [D, 3, p, p]
    patch_size = patch_weight.shape[-1]
    num_reg_tokens = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    num_prefix = ("cls_token" in weights) + ("dist_token" in weights) + num_reg_tokens
    # Without a hint both may be squares; tables with registers are mostly for the patches alone.
    order = [0, num_prefix] if num_reg_tokens else [num_prefix, 0]
    if "dist_token" in weights:
        order.insert(1, num_prefix - 1)  # G2SD's distillation token has no position
    grid, num_prefix_rows = read_grid(weights["pos_embed"].shape[1], order, patch_size, img_size)
    hidden_dim = weights["blocks.0.mlp.fc1.weight"].shape[0]
    return VitShape(
        embed_dim=patch_weight.shape[0],
        depth=depth_of(weights),
        patch_size=patch_size,
        grid=grid,
        num_prefix_rows=num_prefix_rows,
        hidden_dim=hidden_dim,
        has_cls_token="cls_token" in weights,
        has_dist_token="dist_token" in weights,
        num_reg_tokens=num_reg_tokens,
        has_qkv_bias="blocks.0.attn.qkv.bias" in weights,
        has_qk_norm="blocks.0.attn.q_norm.weight" in weights,
        has_layer_scale=bool({"blocks.0.ls1.gamma", "blocks.0.gamma_1"} & weights.keys()),
        has_pre_norm="norm_pre.weight" in weights,
        is_gated=weights["blocks.0.mlp.fc2.weight"].shape[1] * 2 == hidden_dim,
        global_pool=_read_pool(weights),
        num_classes=_num_rows(weights, "head.weight"),
        out_dim=_num_rows(weights, "conv1x1.1.weight"),
        fc_norm_dim=_num_rows(weights, "fc_norm.weight"),
        has_separate_bias="blocks.0.attn.q_bias" in weights,
        num_heads=max(weights[name].shape[-1] if name in weights else 0 for name in _TABLES),
        is_shared=_TABLES[1] in weights,
        has_head_on_cls="dist_norm.weight" in weights and "dist_token" not in weights,
    )


def grid_note(shape: VitShape, img_size: Grid | None) -> str:
    """The sentence that says how the grid of the positions is known."""
    rows, columns = shape.grid
    if img_size is not None and shape.grid == tuple(side // shape.patch_size for side in img_size):
        return f"Positions of {rows} x {columns} patches, as the image size states."
    return (
        f"Positions of {rows} x {columns} patches: a square, for a weights file does not state the "
        "image size; img_size=(height, width) does."
    )


def _num_rows(weights: Weights, name: str) -> int:
    return weights[name].shape[0] if name in weights else 0


def read_grid(
    num_rows: int, order: Sequence[int], patch_size: int, img_size: Grid | None
) -> tuple[Grid, int]:
    """The grid of a position table, and how many of its rows are of prefix tokens.

    ``order``: the numbers that they may be, the likeliest first. Raises UserError for no grid.
    """
    if img_size is not None:
        grid = (img_size[0] // patch_size, img_size[1] // patch_size)
        for rows in order:
            if grid[0] * grid[1] == num_rows - rows:
                return grid, rows
    for rows in order:
        side = isqrt(max(num_rows - rows, 0))
        if side > 0 and side * side == num_rows - rows:
            return (side, side), rows
    prefix = f" with {max(order)} prefix tokens" if max(order) else ""
    raise UserError(
        f"A position table of {num_rows} rows{prefix} is for no square grid; name the image size "
        "it was made for (img_size=(height, width))."
    )


def _read_pool(weights: Weights) -> str:
    if "attn_pool.latent" in weights:
        return "map"
    if "fc_norm.weight" in weights:
        return "avg"
    return "token" if "cls_token" in weights else ""


# timm's plain ViTs differ only in sizes, so any of them builds all; the name is for the reader.
_NAMES = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 1024: "vit_large_patch16_224"}


def to_architecture(
    shape: VitShape,
    num_heads: tuple[int, ...],
    *,
    img_size: Grid,
    norm_eps: float = 1e-6,
    act_layer: str = "gelu",
) -> dict[str, Any]:
    """The ``architecture`` from which ``build_encoder`` makes the ViT (without mean and std).

    timm fixes the norm's epsilon and the gated MLP by the model's name, so the name is chosen by
    them. Raises UserError for a combination that timm does not have.
    """
    if shape.out_dim:
        return _to_own(
            *("tinymim-star", "tinymim_star", shape, num_heads, img_size),
            out_dim=shape.out_dim,
            fc_norm_dim=shape.fc_norm_dim or shape.out_dim,
        )
    if shape.has_separate_bias or shape.num_heads:
        return _to_beit(shape, num_heads, img_size)
    if shape.has_dist_token and shape.num_prefix_rows == 1:
        return _to_own("distilled-last", "vit_distilled_last", shape, num_heads, img_size)
    if shape.has_head_on_cls:
        return _to_own("cls-distilled", "vit_cls_distilled", shape, num_heads, img_size)
    if shape.has_dist_token:
        name, eps = "deit_base_distilled_patch16_224", 1e-6
    elif shape.is_gated:
        name, eps, act_layer = "vit_giant_patch14_dinov2", 1e-6, "silu"
    elif norm_eps == 1e-5:
        name, eps = "vit_base_patch16_clip_224", 1e-5
    else:
        name, eps = _NAMES.get(shape.embed_dim, "vit_base_patch16_224"), 1e-6
    if norm_eps not in (eps, 1e-12):
        raise UserError(
            f"Norms with an epsilon of {norm_eps} are not supported for {name}, which has {eps}; "
            "choose another teacher."
        )
    kwargs: dict[str, Any] = {
        "img_size": img_size[0] if img_size[0] == img_size[1] else list(img_size),
        **_sizes(shape, num_heads),
        "global_pool": shape.global_pool,
    }
    # Only what differs from the named model, whose own is second.
    both = {
        "class_token": (shape.has_cls_token, True),
        "reg_tokens": (shape.num_reg_tokens, 0),
        "no_embed_class": (shape.has_cls_token and not shape.num_prefix_rows, False),
        "qkv_bias": (shape.has_qkv_bias, True),
        "qk_norm": (shape.has_qk_norm, False),
        "pre_norm": (shape.has_pre_norm, name == "vit_base_patch16_clip_224"),
        "act_layer": (act_layer, "silu" if shape.is_gated else "gelu"),
    }
    kwargs |= {key: own for key, (own, usual) in both.items() if own != usual}
    if shape.has_layer_scale:
        kwargs["init_values"] = 1e-5  # any value that builds the scales; the weights overwrite it
    elif shape.is_gated:
        kwargs["init_values"] = 0.0  # timm drops a None, and the named model has scales
    return {"kind": "timm", "name": name, "kwargs": kwargs, "num_heads": list(num_heads)}


def _sizes(shape: VitShape, num_heads: tuple[int, ...]) -> dict[str, Any]:
    """What every kind of architecture is told alike."""
    return {
        "patch_size": shape.patch_size,
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": num_heads[0],
        "mlp_ratio": to_ratio(shape.hidden_dim, shape.embed_dim),
        "num_classes": shape.num_classes,
    }


def _to_own(
    kind: str, name: str, shape: VitShape, num_heads: tuple[int, ...], img_size: Grid, **others: Any
) -> dict[str, Any]:
    kwargs = {"img_size": list(img_size), **_sizes(shape, num_heads), **others}
    return {"kind": kind, "name": name, "kwargs": kwargs, "num_heads": list(num_heads)}


def _to_beit(shape: VitShape, num_heads: tuple[int, ...], img_size: Grid) -> dict[str, Any]:
    """timm's Beit; with a whole qkv bias, which that has not, the kind "beit-qkv-bias"."""
    others = {
        "global_pool": shape.global_pool,
        "use_abs_pos_emb": True,
        "use_rel_pos_bias": shape.num_heads > 0 and not shape.is_shared,
        "use_shared_rel_pos_bias": shape.is_shared,
        # Any value that builds the scales: the weights overwrite it. (timm drops a None.)
        "init_values": 0.1 if shape.has_layer_scale else 0.0,
    }
    if not shape.has_separate_bias and not shape.has_qkv_bias:
        others["qkv_bias"] = False
    is_timms = shape.has_separate_bias or not shape.has_qkv_bias
    named = ("timm", "beit_base_patch16_224") if is_timms else ("beit-qkv-bias", "beit_qkv_bias")
    return _to_own(*named, shape, num_heads, img_size, **others)


def to_ratio(hidden_dim: int, embed_dim: int) -> float:
    """A ``mlp_ratio`` of which timm's ``int(embed_dim * mlp_ratio)`` gives ``hidden_dim``."""
    ratio = hidden_dim / embed_dim
    return ratio if int(embed_dim * ratio) == hidden_dim else (hidden_dim + 0.5) / embed_dim
