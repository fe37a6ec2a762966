"""A segmenter of any encoder: what is added to the encoder, and what is put on it."""

import logging
from typing import Any

import torch

from limbeck.errors import UserError
from limbeck.models.beit_bias import resize_tables
from limbeck.models.build import seeded
from limbeck.models.dense.neck import neck_dims
from limbeck.models.dense.segmenter import Parts, Segmenter, has_wide_end, is_staged
from limbeck.models.hiera import HieraEncoder
from limbeck.models.options import DenseTaps, NeckKind, SegmenterOptions
from limbeck.models.origins.checkpoint import assemble, drop_classifier, has_position_table
from limbeck.models.rel_pos import can_have_rel_pos, with_rel_pos
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.tiny_vit import TinyVitEncoder
from limbeck.models.vit import VitEncoder, build_encoder
from limbeck.models.windows import with_img_size
from limbeck.ops.pos_embed import interpolate_pos_embed
from limbeck.records import NUM_LEVELS

log = logging.getLogger("limbeck")

WIDTH = 128
LAYER_SCALE = 1.0
SHARES: dict[DenseTaps, tuple[float, ...]] = {
    "published": (1 / 3, 1 / 2, 2 / 3, 1),
    "quarters": (1 / 4, 1 / 2, 3 / 4, 1),
}
"""After which share of the blocks a plain ViT is read."""


def build_segmenter(
    backbone: TimmEncoder,
    num_classes: int,
    options: SegmenterOptions,
    seed: int,
    img_size: tuple[int, int] | None = None,
) -> Segmenter:
    """A segmenter with a copy of the backbone's weights; neck and heads start from ``seed``.

    ``img_size`` (H, W) of its images: positions are interpolated, bicubic, as published. The
    backbone's classifier and final norm are left out, and all else of it is trainable unless
    ``options`` freeze it. Raises UserError for options that the backbone can't have.
    """
    encoder = _add_positions(without_classifier(backbone, img_size), options)
    parts = _parts_of(encoder, num_classes, options)
    with seeded(seed):
        segmenter = Segmenter(encoder, parts, encoder.facts.origin)
    if options.freeze:
        segmenter.freeze_backbone()
    return segmenter.train(backbone.training)


def at_img_size(segmenter: Segmenter, img_size: tuple[int, int]) -> Segmenter:
    """The same segmenter for images of another size (H, W), in evaluation mode.

    It shares all weights but the positions, which are interpolated.
    """
    own, facts = segmenter.backbone, segmenter.facts
    if facts.img_size == img_size:
        return segmenter
    architecture = _at_size(own, dict(own.facts.architecture), img_size)
    with torch.random.fork_rng(devices=[]):  # for weights that are replaced
        backbone = build_encoder(architecture, facts.origin)
    parts = facts.architecture["kwargs"] | {
        "img_size": list(img_size), "backbone": backbone.facts.architecture,
    }  # fmt: skip
    with torch.device("meta"):
        again = Segmenter(backbone, parts, facts.origin)
    again.neck, again.head, again.aux_head = segmenter.neck, segmenter.head, segmenter.aux_head
    weights = own.model.state_dict()
    grid, new_grid = own.facts.input_grid, backbone.facts.input_grid
    if has_position_table(weights) and grid != new_grid:
        num_prefix_rows = weights["pos_embed"].shape[1] - grid[0] * grid[1]
        weights["pos_embed"] = interpolate_pos_embed(
            weights["pos_embed"], num_prefix_rows, grid, new_grid, antialias=False
        )
    again.backbone.model.load_state_dict(resize_tables(weights, backbone.model), assign=True)
    return again.to(own.mean.device).eval()


def _at_size(
    encoder: TimmEncoder, architecture: dict[str, Any], img_size: tuple[int, int]
) -> dict[str, Any]:
    """An architecture for images of another size. Windows stay: maps are filled up to them."""
    kwargs = architecture["kwargs"]
    if isinstance(encoder, TinyVitEncoder):
        kwargs = kwargs | {"img_size": list(img_size), "window_sizes": encoder.window_sizes}
    else:
        kwargs = with_img_size(kwargs, img_size)
    return architecture | {"kwargs": kwargs}


def without_classifier(backbone: TimmEncoder, img_size: tuple[int, int] | None) -> TimmEncoder:
    """A copy of an encoder that gives tokens alone, for images of another size if so; trainable."""
    facts = backbone.facts
    architecture, notes = dict(facts.architecture), list(facts.origin.get("notes", []))
    weights = drop_classifier(backbone.model.state_dict(), architecture, 0, notes)
    if isinstance(backbone, HieraEncoder):
        # As it is pre-trained it has three scales, and pooled once more a scale for each stage.
        pooled = {"q_pool": len(backbone.model.stage_ends) - 1}
        architecture["kwargs"] = architecture["kwargs"] | pooled
    if img_size is not None:
        architecture = _at_size(backbone, architecture, img_size)
    copied = {name: value.clone() for name, value in weights.items()}
    origin = {"source": "a network"} | facts.origin | {"notes": notes}
    grid = facts.input_grid
    rows = copied["pos_embed"].shape[1] - grid[0] * grid[1] if has_position_table(copied) else 0
    encoder = assemble(copied, architecture, origin, grid, rows, antialias=False)
    return encoder.to(backbone.mean.device)


def _add_positions(encoder: TimmEncoder, options: SegmenterOptions) -> TimmEncoder:
    """With what the published backbones have of relative positions, if asked for or usual."""
    wanted = options.rel_pos
    if wanted is None:
        wanted = options.head != "light" and can_have_rel_pos(encoder)
    if not wanted:
        if options.rel_pos is None and options.head != "light" and isinstance(encoder, VitEncoder):
            log.warning(
                "This encoder can't have relative positions and layer scale, which %s has as "
                "published%s.",
                options.head,
                "; --num-heads gives all blocks as many heads"
                if len(set(encoder.facts.num_heads)) > 1
                else "",
            )
        return encoder
    if not isinstance(encoder, VitEncoder):
        raise UserError(
            f"segmenter.rel_pos is for plain ViTs, and {encoder.facts.architecture['name']} is "
            "none; leave it out."
        )
    return with_rel_pos(encoder, "qkv-bias", LAYER_SCALE)


def _parts_of(encoder: TimmEncoder, num_classes: int, options: SegmenterOptions) -> Parts:
    facts, head = encoder.facts, options.head
    neck: NeckKind | None = options.neck or ("narrow" if head == "semantic-fpn" else "same")
    width = WIDTH
    if head == "upernet":
        assert neck is not None
        width = neck_dims(neck, (facts.embed_dim,))[0]
    if neck == "same" and head != "light" and has_wide_end(encoder):
        raise UserError(
            f"The tokens of {facts.architecture['name']} get wider after the last block, so that "
            "its maps differ in width; set segmenter.neck wide (as published) or narrow."
        )
    return {
        "img_size": list(facts.img_size),
        "num_classes": num_classes,
        "backbone": facts.architecture,
        "blocks": blocks_of(encoder, options.taps),
        "head": head,
        "width": options.width or width,
        "neck": None if head == "light" else neck,
        "norm": options.norm,
        "dropout": options.dropout,
        "aux": head == "upernet" if options.aux is None else options.aux,
    }


def blocks_of(encoder: TimmEncoder, taps: DenseTaps) -> list[int]:
    """The four blocks that are read: of a hierarchical encoder the last of each scale.

    One of fewer scales has its last block again.
    """
    strides, depth = encoder.facts.block_strides, encoder.facts.depth
    if not is_staged(encoder):
        return [max(round(share * depth), 1) - 1 for share in SHARES[taps]]
    ends = [k for k in range(depth) if k == depth - 1 or strides[k] != strides[k + 1]]
    if taps != "published":
        raise UserError("segmenter.taps is for plain ViTs: others are read after their stages.")
    return [*ends, *[depth - 1] * NUM_LEVELS][:NUM_LEVELS]
