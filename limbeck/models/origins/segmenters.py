"""Segmenters as TinyMIM and G2SD (arXiv 2301.01296, 2302.14771) and MAE-Lite (2205.14443,
2404.12210) publish them: read and written strictly, in both directions.

Both are a plain ViT with relative positions and layer scale. A published name is made of ours, so
one table serves reading and writing; what is read must be exactly what the writer would write.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.models.beit import gen_relative_position_index

from limbeck.errors import UserError
from limbeck.models.dense.build import SHARES
from limbeck.models.dense.headed import Headed
from limbeck.models.dense.segmenter import Parts, Segmenter, rebuild_segmenter
from limbeck.models.encoder import Encoder
from limbeck.models.finished import weight_hash
from limbeck.models.origins.architecture import to_ratio
from limbeck.models.origins.beit import INDEX, check_indices
from limbeck.models.origins.checkpoint import check_match
from limbeck.models.origins.files import FileInfo, left_out_notes
from limbeck.models.origins.layouts import (
    IMAGENET_NORM,
    Weights,
    check_telling,
    depth_of,
    name_list,
    rename,
    sort_out,
)
from limbeck.models.rel_pos import BUILT_AS
from limbeck.models.stated import check_size
from limbeck.models.tensor_files import check_finite

H = TypeVar("H", bound=Headed)
CLASSES = "decode_head.conv_seg.weight"
_TABLE = "attn.relative_position_bias_table"


@dataclass(frozen=True)
class SegmenterLayout:
    """One published layout. ``rules`` are applied to a name of ours, all in turn.

    ``patches`` and ``block`` (with {}) are its names of the patch embedding and of a block.
    """

    name: str
    head: str
    neck: str
    patches: str
    block: str
    rules: tuple[tuple[str, str], ...]

    def name_of(self, own: str) -> str:
        """The published name of a tensor of a ``Segmenter``."""
        for pattern, replacement in self.rules:
            own = re.sub(pattern, replacement, own)
        return own


_UNITS = (
    (r"^((?:aux_)?head\..*)\.norm\.", r"\1.bn."),
    (r"^head\.classify\.conv\.", "decode_head.conv_seg."),
)
LAYOUTS = (
    SegmenterLayout(
        "g2sd_segmenter", "upernet", "same", "backbone.patch_embed.proj", "backbone.blocks.{}",
        (
            *_UNITS,
            (r"^backbone\.model\.", "backbone."),
            (r"^neck\.up4\.", "backbone.fpn1."),
            (r"^neck\.up2\.", "backbone.fpn2."),
            (r"^head\.pools\.(\d)\.", r"decode_head.psp_modules.\1.1."),
            (r"^head\.bottleneck\.", "decode_head.bottleneck."),
            (r"^head\.laterals\.", "decode_head.lateral_convs."),
            (r"^head\.smooth\.", "decode_head.fpn_convs."),
            (r"^head\.fuse\.", "decode_head.fpn_bottleneck."),
            (r"^aux_head\.unit\.", "auxiliary_head.convs.0."),
            (r"^aux_head\.classify\.conv\.", "auxiliary_head.conv_seg."),
        ),
    ),
    SegmenterLayout(
        "mae_lite_segmenter", "semantic-fpn", "narrow", "backbone.patch_embed.projection",
        "backbone.layers.{}",
        (
            *_UNITS,
            (r"^backbone\.model\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
            (r"^backbone\.model\.blocks\.", "backbone.layers."),
            (r"^backbone\.model\.", "backbone."),
            (r"(layers\.\d+)\.norm([12])\.", r"\1.ln\2."),
            (r"(layers\.\d+)\.mlp\.fc1\.", r"\1.ffn.layers.0.0."),
            (r"(layers\.\d+)\.mlp\.fc2\.", r"\1.ffn.layers.1."),
            (r"^neck\.up4\.", "neck.upsample_4x."),
            (r"^neck\.up2\.", "neck.upsample_2x."),
            (r"^neck\.level\.", "neck.identity."),
            (r"^neck\.down\.", "neck.downsample_2x."),
            (r"^head\.scales\.(\d)\.0\.", r"decode_head.scale_heads.\1.0."),
            (r"^head\.scales\.(\d)\.1\.", r"decode_head.scale_heads.\1.2."),
            (r"^head\.scales\.(\d)\.2\.", r"decode_head.scale_heads.\1.4."),
        ),
    ),
)  # fmt: skip


def read_segmenter(weights: Weights, info: FileInfo, path: Path) -> Segmenter | None:
    """The segmenter of a published file in evaluation mode; None where it is none.

    Of a distillation's checkpoint it is the student. Raises UserError, with the names, where any
    tensor is missing, unknown or of another shape.
    """
    weights, left = _take_student(weights)
    if CLASSES not in weights:
        return None
    check_indices(weights, str(path))
    weights = {n: value for n, value in weights.items() if n.rpartition(".")[2] != INDEX}
    layout = next((each for each in LAYOUTS if f"{each.patches}.weight" in weights), None)
    if layout is None:
        raise UserError(
            f"{path} is of a segmenter, in no layout that is known: {name_list(weights)}."
        )
    architecture = _architecture(layout, weights)
    described = (layout.name, left_out_notes(left) + info.notes)
    return fill(weights, architecture, path, described, rebuild_segmenter, layout.name_of)


def fill(
    weights: Weights,
    architecture: dict[str, Any],
    path: Path,
    described: tuple[str, list[str]],
    rebuild: Callable[[dict[str, Any], dict[str, Any]], H],
    name_of: Callable[[str], str],
) -> H:
    """A published network of this architecture with exactly these weights, to evaluate.

    ``described``: its layout and notes; ``name_of`` a tensor of ours is the published name. Raises
    UserError, with the names, where any tensor is missing, unknown or of another shape.
    """
    layout, notes = described
    origin = {
        "source": str(path), "layout": layout, "licence": None,
        "notes": [*notes, "ImageNet's mean and std, as this layout has."],
        "weight_hash": weight_hash(weights),
    }  # fmt: skip
    with torch.device("meta"):
        skeleton = rebuild(architecture, origin)
    state = rename(skeleton.state_dict(), name_of)
    check_match(state, weights, str(path))
    check_size(skeleton, sum(value.numel() for value in weights.values()), str(path))
    check_finite(weights, path)
    with torch.random.fork_rng(devices=[]):
        network = rebuild(architecture, origin)
    own = dict(zip(state, network.state_dict(), strict=True))
    network.load_state_dict(rename(weights, own.__getitem__))
    return network.eval()


def to_published_segmenter(segmenter: Encoder) -> Weights:
    """The tensors of its published layout, the tables of indices among them.

    Raises UserError for a network that no published layout can hold.
    """
    if not isinstance(segmenter, Segmenter):
        raise UserError(
            f"{segmenter.facts.origin.get('source', 'This network')} is no segmenter; choose "
            "--layout mae."
        )
    parts: Parts = segmenter.facts.architecture["kwargs"]
    source, inner = segmenter.facts.origin.get("source", "the segmenter"), parts["backbone"]
    layout = next((e for e in LAYOUTS if (e.head, e.neck) == (parts["head"], parts["neck"])), None)
    is_usual = (
        inner["kind"] == BUILT_AS["qkv-bias"]["kind"]
        and inner["kwargs"].get("use_rel_pos_bias")
        and inner["kwargs"].get("init_values")
        and parts["norm"] == "batch"
        and (segmenter.facts.mean, segmenter.facts.std) == IMAGENET_NORM
        and parts["blocks"] == _blocks(segmenter.facts.depth)
        and parts["aux"] == (parts["head"] == "upernet")
    )
    if layout is None or not is_usual:
        raise UserError(
            f"No published layout can hold {source}: they are for a plain ViT with rel_pos, and "
            "upernet on a neck of the same width or semantic-fpn on a narrow one, with batch norm, "
            "the published taps and ImageNet's mean and std. Its own file is in its run."
        )
    state = segmenter.state_dict()
    weights = {layout.name_of(name): value.detach().cpu().clone() for name, value in state.items()}
    rows, columns = segmenter.facts.grid
    for block in range(segmenter.facts.depth):
        index = gen_relative_position_index((rows, columns))
        weights[f"{layout.block.format(block)}.attn.{INDEX}"] = index
    return weights


def _take_student(weights: Weights) -> tuple[Weights, dict[str, list[str]]]:
    """Of a distillation's checkpoint the student, without its prefix, and what is left out."""
    if f"student.{CLASSES}" not in weights:
        return weights, {}
    kinds = {
        "teacher.": "the teacher that was saved with it",
        "student_": "activations of the student",
        "teacher_": "activations of the teacher",
    }
    kept, left = sort_out(
        weights, lambda name: next((kinds[each] for each in kinds if name.startswith(each)), None)
    )
    return {name.removeprefix("student."): value for name, value in kept.items()}, left


def _blocks(depth: int) -> list[int]:
    return [max(round(share * depth), 1) - 1 for share in SHARES["published"]]


def _architecture(layout: SegmenterLayout, weights: Weights) -> dict[str, Any]:
    first = layout.block.format(0)
    table, hidden = f"{first}.{_TABLE}", layout.name_of("backbone.model.blocks.0.mlp.fc1.weight")
    fused = layout.name_of("head.fuse.conv.weight")
    inner = layout.name_of("head.scales.0.0.conv.weight")
    of_width = fused if layout.head == "upernet" else inner
    numbered = {re.sub(r"^backbone\.(layers|blocks)\.", "blocks.", name) for name in weights}
    depth = depth_of(dict.fromkeys(numbered, torch.empty(0)))
    patches = f"{layout.patches}.weight"
    telling = {patches: 4, "backbone.pos_embed": 3, table: 2, hidden: 2, of_width: 4, CLASSES: 4}
    check_telling(weights, telling, (), "segmenter", depth)
    dim, _, patch, _ = weights[patches].shape
    side = isqrt(max(weights["backbone.pos_embed"].shape[1] - 1, 1)) * patch
    num_heads, (mean, std) = weights[table].shape[1], IMAGENET_NORM
    shared = {"num_heads": [num_heads] * depth, "mean": list(mean), "std": list(std)}
    backbone = BUILT_AS["qkv-bias"] | shared | {
        "kwargs": {
            "img_size": [side, side], "patch_size": patch, "embed_dim": dim, "depth": depth,
            "num_heads": num_heads, "mlp_ratio": to_ratio(weights[hidden].shape[0], dim),
            "num_classes": 0, "global_pool": "token", "use_abs_pos_emb": True,
            "use_rel_pos_bias": True, "init_values": 1.0,
        }
    }  # fmt: skip
    return {
        "name": layout.name,
        "kwargs": {
            "img_size": [side, side], "num_classes": weights[CLASSES].shape[0],
            "backbone": backbone, "blocks": _blocks(depth), "head": layout.head,
            "width": weights[of_width].shape[0], "neck": layout.neck, "norm": "batch",
            "dropout": 0.1, "aux": layout.head == "upernet",
        },
    }  # fmt: skip
