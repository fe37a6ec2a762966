"""A student's shape with nothing left to its name, and what it costs; nothing is allocated."""

from dataclasses import replace
from typing import Any

import torch

from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.heads import plain_shape
from limbeck.models.options import StudentOptions
from limbeck.models.shapes import check_model_name, is_hierarchical, is_tiny_vit
from limbeck.models.timm_encoder import TimmEncoder


def build_outline(shape: StudentOptions, num_classes: int = 0) -> TimmEncoder:
    """The encoder without weights (on torch's device "meta"): shapes and costs can be read of it.

    Raises UserError for a shape that can't be built.
    """
    with torch.device("meta"):
        return build_student(shape, num_classes=num_classes, seed=0)


def whole_shape(options: StudentOptions) -> StudentOptions:
    """The same shape with every option stated that its family has.

    Raises UserError for a model that is neither a plain ViT nor a TinyViT.
    """
    full = check_model_name(options.name)
    is_of_stages = is_tiny_vit(full)
    if is_hierarchical(full) and not is_of_stages:
        raise UserError(
            f"'{options.name}' can't be contracted: that is for a TinyViT or a plain ViT."
        )
    encoder = build_outline(options)
    side, other = encoder.facts.img_size
    if side != other:
        raise UserError(f"'{options.name}' has images of {side} x {other} pixels, not square ones.")
    read = _of_stages(encoder) if is_of_stages else plain_shape(encoder)
    return replace(options, **read | {"img_size": side})


def _of_stages(encoder: TimmEncoder) -> dict[str, Any]:
    model = encoder.model
    first, *others = model.stages
    dims = tuple(info["num_chs"] for info in model.feature_info)
    blocks = [block for stage in others for block in stage.blocks]
    channels = {block.dim // block.num_heads for block in blocks}
    if len(channels) > 1:
        raise UserError(f"The heads have {sorted(channels)} channels; state one head_dim for all.")
    conv = first.blocks[0].conv1.conv
    return {
        "embed_dims": dims,
        "depths": tuple(len(stage.blocks) for stage in model.stages),
        "window_sizes": (others[0].blocks[0].window_size,)
        + tuple(stage.blocks[0].window_size for stage in others),
        "head_dim": min(channels),
        "mlp_ratio": float(model.mlp_ratio),
        "mbconv_expand_ratio": conv.out_channels / conv.in_channels,
    }
