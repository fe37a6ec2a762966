"""A plain ViT's weights in ViTDet's backbone (arXiv 2203.16527): windows and relative positions."""

import logging
import re

import torch
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor

from limbeck.models.build import seeded
from limbeck.models.dense.build import without_classifier
from limbeck.models.finished import weight_hash
from limbeck.models.heads import has_usual_blocks, plain_shape
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.vit import VitEncoder, build_encoder
from limbeck.models.vit_det import WINDOW, VitDet, published_globals

log = logging.getLogger("limbeck")

_PREFIX = ("cls_token", "reg_token", "dist_token")


def encoder_of(backbone: TimmEncoder, img_size: tuple[int, int] | None) -> TimmEncoder:
    """A copy of an encoder for images of another size if so, as rcnn reads it; trainable.

    A plain ViT gets windows and relative positions that start at 0. Its positions stay on their
    grid; its class token and final norm are left out.
    """
    weights, facts = _weights(backbone), backbone.facts
    if weights is None:
        if isinstance(backbone, VitEncoder) and not isinstance(backbone.model, VitDet):
            log.warning(
                "%s can't have ViTDet's windows and relative positions: all its blocks attend to "
                "all patches, as they are.",
                facts.architecture["name"],
            )
        return without_classifier(backbone, img_size)
    kwargs = plain_shape(backbone) | {
        "img_size": list(img_size or facts.img_size),
        "global_blocks": published_globals(facts.depth),
        "window": WINDOW,
        "pos_grid": list(facts.grid),
        "num_classes": 0,
    }
    if len(set(facts.num_heads)) > 1:
        kwargs["num_heads"] = list(facts.num_heads)
    own = {"kind": "vit-det", "name": "vit_det", "kwargs": kwargs}
    origin = {"source": "a network"} | facts.origin | {"weight_hash": weight_hash(weights)}
    with seeded(0):  # for weights that are replaced
        made = build_encoder(facts.architecture | own, origin)
    made.model.load_state_dict(made.model.state_dict() | weights)
    return made.to(backbone.mean.device).eval()


def _weights(encoder: TimmEncoder) -> dict[str, Tensor] | None:
    """What ViTDet's backbone has of a plain ViT, by name; None where it has no place for all."""
    model, facts = encoder.model, encoder.facts
    is_usual = (
        isinstance(model, VisionTransformer)
        and has_usual_blocks(model)
        and model.pos_embed is not None
        and all(type(block.attn) is Attention for block in model.blocks)
    )
    if not is_usual:
        return None
    weights = {
        name: value
        for name, value in model.state_dict().items()
        if name.partition(".")[0] not in (*_PREFIX, *VitEncoder.after_blocks)
    }
    rows, patches = weights["pos_embed"], facts.grid[0] * facts.grid[1]
    of_class = rows[:, :1] if rows.shape[1] > patches else torch.zeros_like(rows[:, :1])
    weights["pos_embed"] = torch.cat((of_class, rows[:, -patches:]), dim=1)
    plain = re.compile(
        r"pos_embed|(patch_embed\.proj|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))"
        r"\.(weight|bias)"
    )
    has_bias = "blocks.0.attn.qkv.bias" in weights
    return weights if has_bias and all(map(plain.fullmatch, weights)) else None
