"""The layouts in which vision Transformers are published, recognised by the names of their tensors.

All of them are timm's naming or one renaming away from it. Shapes are read from the tensors; what
tensors do not tell (head counts) is in the table, with its origin. Recognition looks at a few
telling names only: that *every* tensor fits is checked by whoever loads them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

from torch import Tensor

from limbeck.errors import UserError

Weights = dict[str, Tensor]
"""Tensors by name."""

Grid = tuple[int, int]

IMAGENET_NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# DeiT's and MAE's own: 64 channels per head in all but the last (80).
STANDARD_HEADS = {width: (n, n) for width, n in {192: 3, 384: 6, 768: 12, 1024: 16}.items()}
STANDARD_HEADS[1280] = (16, 16)
# TinyMIM pre-trains with the teacher's head count in the last block.
TINYMIM_HEADS = {192: (6, 12), 384: (6, 12), 768: (12, 16)}
TSTAR_HEADS = {192: (12, 12)}  # read off its segmentation backbone
DINOV2_HEADS = STANDARD_HEADS | {1536: (24, 24)}

# The programs whose checkpoints show that they are theirs, see companions.py.
MAE_LITE, MOCO_V3 = "MAE-Lite", "MoCo-v3"
# 12 heads in all of its networks (arXiv 2205.14443); MoCo-v3's ViT-S has them too (2104.02057).
MAE_LITE_HEADS = {width: (12, 12) for width in (192, 384, 768)}
BEIT_HEADS = {768: (12, 12), 1024: (16, 16)}
MOCO_V3_HEADS = MAE_LITE_HEADS | {1024: (16, 16)}


@dataclass(frozen=True)
class Layout:
    """One published layout.

    ``recognises`` is asked of all tensors. ``convert`` renames them to timm's names.
    ``left_out`` maps the beginning or the last part of a (converted) name to what it is: tensors
    that are no part of the encoder. ``heads`` maps a width to the head counts of (the other
    blocks, the last one). ``is_imagenet``: the images were normalised with ImageNet's mean and std
    for sure. ``program``: only checkpoints of this program are in it; '' is any.
    """

    name: str
    description: str
    recognises: Callable[[Weights], bool]
    heads: dict[int, tuple[int, int]]
    convert: Callable[[Weights], Weights] = lambda weights: weights
    left_out: tuple[tuple[str, str], ...] = ()
    is_imagenet: bool = True
    program: str = ""


def has_axes(tensor: Tensor, num_axes: int) -> bool:
    """Whether a tensor has so many axes, and any values."""
    return tensor.ndim == num_axes and tensor.numel() > 0


def check_telling(
    weights: Weights, num_axes: dict[str, int], optional: Sequence[str], what: str, parts: int
) -> None:
    """Raise UserError where a tensor that tells the shape is missing, empty or of another form.

    ``num_axes`` of each; the ``optional`` ones may be absent. ``parts``: as many blocks (or stages)
    as the highest number in a name says, of which there can't be more than tensors.
    """
    wrong = [
        name
        for name, axes in num_axes.items()
        if not (has_axes(weights[name], axes) if name in weights else name in optional)
    ]
    if wrong or not 0 < parts <= len(weights):
        raise UserError(
            f"These are no weights of a whole {what} ({', '.join(wrong) or 'blocks'} missing or of "
            f"another form) among {len(weights)} tensors: {name_list(weights)}."
        )


_BLOCK = re.compile(r"blocks\.(\d+)\.")


def depth_of(weights: Weights) -> int:
    """How many blocks: one more than the highest number in a ``blocks.N.`` name."""
    return 1 + max((int(found[1]) for found in map(_BLOCK.match, weights) if found), default=-1)


def _is_vit(weights: Weights) -> bool:
    telling = ("patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.attn.qkv.weight")
    other = ("attn.q_bias", ".gamma_1", "relative_position_bias_table")  # EVA's and BEiT's
    is_other = any(name.endswith(other) for name in weights)
    return all(name in weights for name in telling) and not is_other


def _vit_with(*names: str) -> Callable[[Weights], bool]:
    """What recognises a ViT that has these tensors besides."""
    return lambda weights: _is_vit(weights) and set(names) <= weights.keys()


def _has_beit_parts(weights: Weights) -> bool:
    """Names that BEiT has in common with EVA, which computes other things under them."""
    telling = ("patch_embed.proj.weight", "cls_token", "blocks.0.norm1.weight",
               "blocks.0.attn.qkv.weight")  # fmt: skip
    special = ("attn.q_bias", "gamma_1", "attn.relative_position_bias_table")
    return all(name in weights for name in telling) and any(
        f"blocks.0.{name}" in weights for name in special
    )


def _is_beit(weights: Weights) -> bool:
    table = "relative_position_bias_table"
    own = {f"blocks.0.attn.{table}", f"rel_pos_bias.{table}", "lm_head.weight"}  # EVA never has
    return _has_beit_parts(weights) and bool(own & weights.keys())


def _convert_beit(weights: Weights) -> Weights:
    """Layer scale alone is the plain ViT's, in its names; the rest is BEiT's own."""
    own = ("attn.q_bias", "relative_position_bias_table")
    if any(name.endswith(own) for name in weights):
        return weights
    return rename(weights, lambda name: re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name))


def _is_bare(weights: Weights) -> bool:
    """A plain ViT with a CLS token and a final norm, no classifier, nothing learned besides."""
    is_plain = _is_vit(weights) and {"cls_token", "pos_embed", "norm.weight"} <= weights.keys()
    beyond = ("head.weight", "reg_token", "dist_token", "norm_pre.weight", "blocks.0.ls1.gamma")
    return is_plain and not any(name in weights for name in beyond)


def is_initial(weights: Weights, name: str) -> bool:
    """Whether a norm is there and has the weights that it started with."""
    weight, bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
    if weight is None or bias is None:
        return False
    return bool((weight == 1).all() and (bias == 0).all())


def _is_tinymim(weights: Weights) -> bool:
    # Relations are taken before the last block's attention, so what follows was never trained.
    # If the first norm is at its start as well, nothing at all was trained.
    tail = (f"blocks.{depth_of(weights) - 1}.norm2", "norm")
    return (
        _is_bare(weights)
        and all(is_initial(weights, name) for name in tail)
        and not is_initial(weights, "blocks.0.norm1")
    )


def _is_mae_encoder(weights: Weights) -> bool:
    # MAE's fixed sin-cos table has zeros in the CLS token's row; learned tables never do.
    if not _is_bare(weights) or not has_axes(weights["pos_embed"], 3):
        return False
    return not weights["pos_embed"][:, 0].any()


def rename(weights: Weights, to_name: Callable[[str], str]) -> Weights:
    """The tensors under other names. Raises UserError where two would have the same."""
    renamed: Weights = {}
    for name, value in weights.items():
        new = to_name(name)
        if new in renamed:
            raise UserError(f"Two tensors would both be '{new}', one of them '{name}'; remove one.")
        renamed[new] = value
    return renamed


def _convert_dinov2(weights: Weights) -> Weights:
    def to_name(name: str) -> str:
        name = name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
        return "reg_token" if name == "register_tokens" else name

    return place_registers(rename(weights, to_name))


def place_registers(weights: Weights) -> Weights:
    """Move the CLS token's position into the token itself, where there are register tokens.

    DINOv2 adds positions before it inserts the registers; timm's equivalent is a table for the
    patches alone.
    """
    if not {"reg_token", "cls_token", "pos_embed"} <= weights.keys():
        return weights
    pos_embed = weights["pos_embed"]
    if pos_embed.ndim != 3:
        return weights  # whoever reads the shape refuses it
    return weights | {
        "cls_token": weights["cls_token"] + pos_embed[:, :1],
        "pos_embed": pos_embed[:, 1:],
    }


_DECODER = (("decoder_", "the decoder"), ("mask_token", "the decoder's mask token"))
_FEATURE_PROJECTIONS = (
    ("decoderfeature_pred.", "the projection of the decoder's tokens"),
    ("encoderfeature_pred.", "the projection of the encoder's tokens"),
)


def _is_fine_tuned(weights: Weights) -> bool:
    return (
        _is_vit(weights)
        and {"cls_token", "fc_norm.weight", "head.weight"} <= weights.keys()
        and not {"norm.weight", "reg_token", "blocks.0.ls1.gamma"} & weights.keys()
    )


def _has_head_on_class_token(weights: Weights) -> bool:
    """Two classifiers and no token for the second: it reads the class token, through its norm."""
    parts = {"cls_token", "fc_norm.weight", "head.weight", "head_dist.weight"}
    has_norm = any(f"{name}.weight" in weights for name in ("norm", "dist_norm"))
    return (
        _is_vit(weights)
        and parts <= weights.keys()
        and has_norm
        and not {"dist_token", "reg_token", "blocks.0.ls1.gamma"} & weights.keys()
    )


def _has_token_without_position(weights: Weights) -> bool:
    """A distillation token, and rows of positions for one prefix token and a square of patches."""
    is_meant = _vit_with("dist_token", "pos_embed")(weights)
    if not is_meant or not has_axes(weights["pos_embed"], 3):
        return False
    num_patches = weights["pos_embed"].shape[1] - 1
    return isqrt(num_patches) ** 2 == num_patches


_TABLES = ("relative_position_index", "tables of indices, which are computed")
_MASK_TOKEN = ("mask_token", "the mask token of its pre-training")
_LM_HEAD = tuple((f"lm_head.{end}", "the head of its pre-training") for end in ("weight", "bias"))

LAYOUTS: tuple[Layout, ...] = (
    Layout("g2sd", "G2SD's generic stage: encoder, decoder, projections to the teacher's tokens",
           _vit_with("decoderfeature_pred.fc1.weight"), STANDARD_HEADS,
           left_out=(*_DECODER, *_FEATURE_PROJECTIONS)),
    Layout("mae_lite", "MAE-Lite pre-training, encoder and its small decoder",
           _vit_with("decoder_embed.weight"), MAE_LITE_HEADS, left_out=_DECODER, program=MAE_LITE),
    Layout("mae_lite_distilled",
           "MAE-Lite fine-tuned with a teacher: the class token has a second norm and classifier",
           _has_head_on_class_token, MAE_LITE_HEADS,
           convert=lambda weights: rename(weights, lambda n: re.sub(r"^norm\.", "dist_norm.", n))),
    Layout("mae_lite_fine_tuned", "MAE-Lite fine-tuned: mean pooling, fc_norm, classifier",
           _is_fine_tuned, MAE_LITE_HEADS, program=MAE_LITE),
    Layout("mae_lite_encoder", "an encoder of MAE-Lite",
           _is_bare, MAE_LITE_HEADS, program=MAE_LITE),
    Layout("mae_lite_classifier", "MAE-Lite fine-tuned: class token, final norm, classifier",
           _vit_with("norm.weight", "head.weight"), MAE_LITE_HEADS, program=MAE_LITE),
    Layout("moco_v3", "MoCo-v3 pre-training",
           _is_vit, MOCO_V3_HEADS, left_out=(("head.", "the projection head"),), program=MOCO_V3),
    Layout("beit", "a ViT in BEiT's names: biases apart, relative positions, layer scale",
           _is_beit, BEIT_HEADS, convert=_convert_beit,
           left_out=(_TABLES, _MASK_TOKEN, *_LM_HEAD)),
    Layout("mae_lite_beit", "MAE-Lite fine-tuned in BEiT's names: biases apart or layer scale",
           _has_beit_parts, MAE_LITE_HEADS, convert=_convert_beit, left_out=(_TABLES,),
           program=MAE_LITE),
    Layout("mae_full", "MAE pre-training, encoder and decoder",
           _vit_with("decoder_embed.weight"), STANDARD_HEADS, left_out=_DECODER),
    Layout("tinymim_tstar",
           "TinyMIM*-T fine-tuned: a distillation token and a wider layer before the classifiers",
           _vit_with("dist_token", "conv1x1.1.weight"), TSTAR_HEADS),
    Layout("dinov2", "DINOv2 as published by its authors",
           _vit_with("mask_token", "blocks.0.ls1.gamma"), DINOV2_HEADS,
           convert=_convert_dinov2, left_out=(_MASK_TOKEN,)),
    Layout("g2sd_specific",
           "G2SD fine-tuned: a distillation token without a position, two classifiers",
           _has_token_without_position, STANDARD_HEADS),
    Layout("deit_distilled", "DeiT with a distillation token (timm's names)",
           _vit_with("dist_token"), STANDARD_HEADS),
    Layout("fine_tuned", "MAE or TinyMIM fine-tuned: mean pooling, fc_norm, classifier",
           _is_fine_tuned, STANDARD_HEADS),
    Layout("tinymim",
           "TinyMIM pre-training: the end of the last block and the final norm were never trained",
           _is_tinymim, TINYMIM_HEADS),
    Layout("mae_encoder", "MAE pre-training, encoder only", _is_mae_encoder, STANDARD_HEADS),
    Layout("timm_vit", "a ViT in timm's names", _is_vit, DINOV2_HEADS, is_imagenet=False),
)  # fmt: skip


def recognise(weights: Weights, program: str = "") -> Layout:
    """The first layout that fits a file that ``program`` wrote ('' where nothing tells).

    Raises UserError with the names of the tensors if none does.
    """
    for layout in LAYOUTS:
        if layout.program in ("", program) and layout.recognises(weights):
            return layout
    known = "; ".join(layout.description for layout in LAYOUTS)
    raise UserError(
        f"These {len(weights)} tensors are in no layout that is known ({known}). Their names: "
        f"{name_list(weights)}. Rename them to timm's names, or name the architecture "
        "(model_name=...) if they have these."
    )


def name_list(names: Any, limit: int = 20) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def find_heads(
    layout: Layout,
    embed_dim: int,
    depth: int,
    num_heads: int | tuple[int, ...] | None,
    told: str = "",
) -> tuple[tuple[int, ...], str]:
    """Head counts per block, and where they are known from; ``num_heads`` given by the user wins.

    ``told``: the count that the file states beside the weights, as ``limbeck convert`` writes it.
    Raises UserError where neither the user nor the file nor the table knows them.
    """
    if num_heads is not None:
        return spread_heads(num_heads, depth), "given by the caller"
    if told.isdecimal():
        return spread_heads(int(told), depth), "stated in the file"
    if embed_dim not in layout.heads:
        raise UserError(
            f"A weights file does not store head counts, and a width of {embed_dim} does not tell "
            f"it ({layout.description}); name it (num_heads=...; on the command line "
            "--teacher.num-heads, or of a student finetune's --num-heads and distill's "
            "--student.num-heads)."
        )
    others, last = layout.heads[embed_dim]
    return (others,) * (depth - 1) + (last,), f"usual for {layout.description}, width {embed_dim}"


def spread_heads(num_heads: int | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """One head count per block from one number, or as given. Raises UserError on a wrong length."""
    counts = (num_heads,) * depth if isinstance(num_heads, int) else tuple(num_heads)
    if len(counts) != depth:
        raise UserError(f"num_heads has {len(counts)} entries for {depth} blocks; give {depth}.")
    return counts


def split_left_out(layout: Layout, weights: Weights) -> tuple[Weights, dict[str, list[str]]]:
    """The encoder's tensors, and the names of those that are left out, by what they are."""

    def what_of(name: str) -> str | None:
        parts = layout.left_out
        return next((w for p, w in parts if name.startswith(p) or name.endswith(f".{p}")), None)

    return sort_out(weights, what_of)


def sort_out(
    weights: Weights, what_of: Callable[[str], str | None]
) -> tuple[Weights, dict[str, list[str]]]:
    """The tensors of which ``what_of`` their name is None, and the names of the others, by it."""
    kept: Weights = {}
    left: dict[str, list[str]] = {}
    for name, value in weights.items():
        what = what_of(name)
        if what is None:
            kept[name] = value
        else:
            left.setdefault(what, []).append(name)
    return kept, left
