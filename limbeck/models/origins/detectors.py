"""Mask R-CNN on ViTDet's backbone as G2SD and MAE-Lite (arXiv 2302.14771, 2205.14443) publish it:
read and written strictly, in both directions. A published name is made of ours."""

import re
from math import isqrt
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import UserError
from limbeck.models.dense.detector import rebuild_detector
from limbeck.models.dense.rcnn.detector import RcnnDetector
from limbeck.models.encoder import Encoder
from limbeck.models.finished import weight_hash
from limbeck.models.origins.architecture import to_ratio
from limbeck.models.origins.files import FileInfo
from limbeck.models.origins.layouts import (
    IMAGENET_NORM,
    Weights,
    check_telling,
    depth_of,
    name_list,
    rename,
    sort_out,
)
from limbeck.models.stated import check_size
from limbeck.models.tensor_files import check_finite, compare
from limbeck.models.vit_det import WINDOW, VitDet

_NET, _HEADS = "backbone.net.", "roi_heads."
CLASSES = f"{_HEADS}box_predictor.cls_score.weight"
_MASKS = f"{_HEADS}mask_head.predictor.weight"
_ADAPTERS = "stu_adapter."
_RULES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.model\.", _NET),
    (r"^rpn\.convs\.", "proposal_generator.rpn_head.conv.conv"),
    (r"^rpn\.objectness\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.deltas\.", "proposal_generator.rpn_head.anchor_deltas."),
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
        weights, lambda name: "adapters of a distillation" if name.startswith(_ADAPTERS) else None
    )
    architecture = _architecture(weights)
    notes = [f"Left out {what} ({len(names)} tensors)." for what, names in left.items()]
    if _MASKS not in weights:
        notes.append("There is no head of masks in it.")
    origin = {
        "source": str(path), "layout": "vitdet_detector", "licence": None,
        "notes": [*notes, *info.notes, "ImageNet's mean and std, as this layout has."],
        "weight_hash": weight_hash(weights),
    }  # fmt: skip
    with torch.device("meta"):
        skeleton = rebuild_detector(architecture, origin)
    state = skeleton.state_dict()
    own = {_published(name): name for name in state}
    problems = [
        f"{len(names)} {kind} ({name_list(names)})"
        for kind, names in compare({n: state[own[n]] for n in own}, weights).items()
        if names
    ]
    if problems:
        raise UserError(f"{path} does not fit: {'; '.join(problems)}. Nothing is loaded in part.")
    check_size(skeleton, sum(value.numel() for value in weights.values()), str(path))
    check_finite(weights, path)
    with torch.random.fork_rng(devices=[]):
        detector = rebuild_detector(architecture, origin)
    detector.load_state_dict(rename(weights, own.__getitem__))
    assert isinstance(detector, RcnnDetector)
    return detector.eval()


def to_published_detector(detector: Encoder) -> Weights:
    """The tensors of its published layout. Raises UserError for a network that it can't hold."""
    is_usual = (
        isinstance(detector, RcnnDetector)
        and isinstance(detector.backbone.model, VitDet)
        and len(detector.stages) == 1
        and (detector.facts.mean, detector.facts.std) == IMAGENET_NORM
    )
    if not is_usual:
        raise UserError(
            f"No published layout can hold {detector.facts.origin.get('source', 'this network')}: "
            "it is for rcnn without cascade on a plain ViT, with ImageNet's mean and std. Its own "
            "file is in its run."
        )
    return {_published(n): v.detach().cpu().clone() for n, v in detector.state_dict().items()}


def _published(own: str) -> str:
    """The published name of a tensor of ours."""
    for pattern, replacement in _RULES:
        own = re.sub(pattern, replacement, own)
    for pattern, replacement, first in _COUNTED:
        own = re.sub(pattern, lambda m: replacement.format(int(m[1]) + first), own)  # noqa: B023
    return own


def _architecture(weights: Weights) -> dict[str, Any]:
    """What the tensors tell: the side of the images is that of the largest tables of positions."""
    table, hidden = f"{_NET}blocks.{{}}.attn.rel_pos_h", f"{_NET}blocks.0.mlp.fc1.weight"
    patches, fused = f"{_NET}patch_embed.proj.weight", "backbone.simfp_2.4.weight"
    net = {n.removeprefix(_NET): v for n, v in weights.items() if n.startswith(_NET)}
    depth = depth_of(net)
    telling = {patches: 4, f"{_NET}pos_embed": 3, hidden: 2, fused: 4, CLASSES: 2}
    telling |= {table.format(block): 2 for block in range(min(depth, len(weights)))}
    check_telling(weights, telling, (), "detector", depth)
    dim, _, patch, _ = weights[patches].shape
    sides = [(len(weights[table.format(block)]) + 1) // 2 for block in range(depth)]
    num_heads = dim // weights[table.format(0)].shape[1]
    size, grid = max(sides) * patch, isqrt(max(weights[f"{_NET}pos_embed"].shape[1] - 1, 1))
    mean, std = IMAGENET_NORM
    backbone = {
        "kind": "vit-det", "name": "vit_det", "num_heads": [num_heads] * depth,
        "mean": list(mean), "std": list(std),
        "kwargs": {
            "img_size": [size, size], "patch_size": patch, "embed_dim": dim, "depth": depth,
            "num_heads": num_heads, "mlp_ratio": to_ratio(weights[hidden].shape[0], dim),
            "global_blocks": [block for block in range(depth) if sides[block] == max(sides)],
            "window": min(sides) if min(sides) < max(sides) else WINDOW, "pos_grid": [grid, grid],
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
