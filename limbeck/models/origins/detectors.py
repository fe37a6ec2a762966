"""Mask R-CNN on ViTDet's backbone as G2SD and MAE-Lite (arXiv 2302.14771, 2205.14443) publish it:
read strictly. A published name is made of ours."""

import re
from math import isqrt
from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.models.dense.rcnn.detector import RcnnDetector, rebuild
from limbeck.models.origins.architecture import to_ratio
from limbeck.models.origins.files import FileInfo, left_out_notes
from limbeck.models.origins.layouts import (
    IMAGENET_NORM,
    Weights,
    check_telling,
    depth_of,
    sort_out,
)
from limbeck.models.origins.segmenters import fill
from limbeck.models.vit_det import WINDOW

_NET, _RPN, _HEADS = "backbone.net.", "proposal_generator.rpn_head.", "roi_heads."
CLASSES = f"{_HEADS}box_predictor.cls_score.weight"
_MASKS = f"{_HEADS}mask_head.predictor.weight"
_RULES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.model\.", _NET),
    (r"^rpn\.convs\.", f"{_RPN}conv.conv"),
    (r"^rpn\.objectness\.", f"{_RPN}objectness_logits."),
    (r"^rpn\.deltas\.", f"{_RPN}anchor_deltas."),
    (r"^boxes\.0\.fc\.", f"{_HEADS}box_head.fc1."),
    (r"^boxes\.0\.classes\.", f"{_HEADS}box_predictor.cls_score."),
    (r"^boxes\.0\.deltas\.", f"{_HEADS}box_predictor.bbox_pred."),
    (r"^masks\.up\.", f"{_HEADS}mask_head.deconv."),
    (r"^masks\.masks\.", f"{_HEADS}mask_head.predictor."),
)
_COUNTED = (
    (r"^pyramid\.levels\.(\d)\.", "backbone.simfp_{}.", 2),
    (r"^boxes\.0\.convs\.(\d)\.", f"{_HEADS}box_head.conv{{}}.", 1),
    (r"^masks\.convs\.(\d)\.", f"{_HEADS}mask_head.mask_fcn{{}}.", 1),
)
"""Names with a number, and from which that counts."""


def read_detector(weights: Weights, info: FileInfo, path: Path) -> RcnnDetector | None:
    """The detector of a published file in evaluation mode; None where it is none.

    Raises UserError, with the names, where any tensor is missing, unknown or of another shape.
    """
    if f"{_HEADS}box_predictor.0.cls_score.weight" in weights:
        raise UserError(
            f"{path} is of a cascade, whose published names are not known here; only a Mask R-CNN "
            "of one box head is read."
        )
    if CLASSES not in weights:
        return None
    weights, left = sort_out(
        weights, lambda name: "adapters" if name.startswith("stu_adapter.") else None
    )
    notes = left_out_notes(left)
    if _MASKS not in weights:
        notes.append("There is no head of masks in it.")
    described = ("vitdet_detector", [*notes, *info.notes])
    return fill(weights, _architecture(weights), path, described, rebuild, published_name)


def published_name(own: str) -> str:
    """The published name of a tensor of an ``RcnnDetector``."""
    for pattern, replacement in _RULES:
        own = re.sub(pattern, replacement, own)
    for pattern, replacement, first in _COUNTED:
        if found := re.match(pattern, own):
            own = replacement.format(int(found[1]) + first) + own[found.end() :]
    return own


def _architecture(weights: Weights) -> dict[str, Any]:
    """What the tensors tell: the side of the images is that of the largest tables of positions that
    are not of the published window, which a small image's grid may be smaller than."""
    table, hidden = f"{_NET}blocks.{{}}.attn.rel_pos_h", f"{_NET}blocks.0.mlp.fc1.weight"
    patches, fused = f"{_NET}patch_embed.proj.weight", "backbone.simfp_2.4.weight"
    net = {n.removeprefix(_NET): v for n, v in weights.items() if n.startswith(_NET)}
    depth = depth_of(net)
    telling = {patches: 4, f"{_NET}pos_embed": 3, hidden: 2, fused: 4, CLASSES: 2}
    telling |= {table.format(block): 2 for block in range(min(depth, len(weights)))}
    check_telling(weights, telling, (), "detector", depth)
    dim, _, patch, _ = weights[patches].shape
    sides = [(len(weights[table.format(block)]) + 1) // 2 for block in range(depth)]
    heads = [dim // weights[table.format(block)].shape[1] for block in range(depth)]
    others = sorted({side for side in sides if side != WINDOW})
    whole = others[-1] if others else WINDOW
    size, grid = whole * patch, isqrt(max(weights[f"{_NET}pos_embed"].shape[1] - 1, 1))
    mean, std = IMAGENET_NORM
    backbone = {
        "kind": "vit-det", "name": "vit_det", "num_heads": heads,
        "mean": list(mean), "std": list(std),
        "kwargs": {
            "img_size": [size, size], "patch_size": patch, "embed_dim": dim, "depth": depth,
            "num_heads": heads[0] if len(set(heads)) == 1 else heads,
            "mlp_ratio": to_ratio(weights[hidden].shape[0], dim),
            "global_blocks": [block for block in range(depth) if sides[block] == whole],
            "window": WINDOW if WINDOW in sides or len(others) < 2 else others[0],
            "pos_grid": [grid, grid],
            "num_classes": 0,
        },
    }  # fmt: skip
    return {
        "name": "vitdet_detector",
        "kwargs": {
            "img_size": [size, size], "num_classes": weights[CLASSES].shape[0] - 1,
            "backbone": backbone, "head": "rcnn", "width": weights[fused].shape[0],
            "cascade": False, "masks": _MASKS in weights,
        },
    }  # fmt: skip
