"""A classifier in the place of an encoder's head: the model that is fine-tuned."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.hiera import Hiera
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from limbeck.errors import UserError
from limbeck.models.beit_bias import resize_tables
from limbeck.models.build import choose_pooling, seeded
from limbeck.models.cls_distilled import ClsDistilledVit
from limbeck.models.distilled_last import DistilledLastVit
from limbeck.models.encoder import EncoderFacts
from limbeck.models.head_rows import copy_rows
from limbeck.models.options import GlobalPool, HeadKind, choose_pool
from limbeck.models.origins.architecture import read_shape, to_architecture, to_ratio
from limbeck.models.origins.checkpoint import has_position_table, interpolation_note
from limbeck.models.origins.layouts import Grid, Weights
from limbeck.models.tensor_files import compare
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.tinymim_star import OUT_DIM, TinyMimStar
from limbeck.models.vit import build_encoder, has_usual_blocks
from limbeck.models.windows import with_img_size
from limbeck.ops.pos_embed import interpolate_pos_embed

log = logging.getLogger("limbeck")

_KIND_OF: dict[type, HeadKind] = {
    VisionTransformerDistilled: "distilled",
    DistilledLastVit: "distilled-last",
    ClsDistilledVit: "cls-distilled",
    TinyMimStar: "tinymim-star",
}
# What a plain ViT gets and loses for a second head.
_ADDED = {
    "distilled": ("dist_token",),
    "distilled-last": ("dist_token",),
    "cls-distilled": ("dist_norm",),
    "tinymim-star": ("dist_token", "conv1x1", "fc_norm"),
}
_DROPPED = {"tinymim-star": ("norm", "fc_norm")}
# Where the new token takes over the class token's position: what else is wider, name: rows.
_WIDENED = {"distilled": {}, "tinymim-star": {"conv1x1.1.weight": OUT_DIM}}
_NAMES = {"cls-distilled": "vit_cls_distilled", "distilled-last": "vit_distilled_last"}


def with_classifier(
    encoder: TimmEncoder,
    num_classes: int,
    global_pool: GlobalPool | None,
    seed: int,
    *,
    head: HeadKind | None = None,
    num_heads: int | None = None,
    img_size: int | None = None,
    head_init_std: float = 2e-5,
    dist_head_init_std: float | None = None,
    q_pool: int | None = None,
    head_rows: Sequence[int] | None = None,
) -> TimmEncoder:
    """The model to fine-tune: the encoder's weights and a new head, all of it trainable.

    ``head``: the encoder's own kind if not given; "single" is one classifier, "distilled" DeiT's
    two, "tinymim-star" TinyMIM*'s. A plain ViT that becomes one of these gets a distillation
    token (trunc-normal with std 0.02) after its class token, and for it the class token's row of
    positions; TinyMIM*'s wide layer starts as any of its linear layers (trunc-normal, std 0.02).
    "distilled-last" is G2SD's: the token is without a position, and the positions stay as they are.
    "cls-distilled" are MAE-Lite's two, of which the class token has the second, with a fresh norm.

    ``global_pool``: of a single classifier "avg" (if not given) pools the patches and norms
    afterwards (timm's fc_norm), "token" norms and takes the CLS token; "distilled" and
    "distilled-last" can only do the latter, "cls-distilled" and "tinymim-star" only the former. A
    norm in another place than the encoder's starts fresh, and the encoder's is dropped. Heads start
    trunc-normal with ``head_init_std`` (the second with ``dist_head_init_std``, if given) and zero
    bias, or from these rows of the encoder's own (``copy_rows``): one per class in ``head_rows``.

    Adapted head counts are kept unless ``num_heads`` sets one for all blocks. Another ``img_size``
    (pixels) interpolates the positions. ``q_pool``: of a Hiera, three times if not given. Raises
    UserError for a kind that the encoder can't become, and where any other weight has no
    counterpart.
    """
    facts = encoder.facts
    own_kind = _KIND_OF.get(type(encoder.model), "single")
    head = head or own_kind
    global_pool = choose_pool(head, global_pool)
    _check_head(encoder, own_kind, head)
    if global_pool == "token" and not facts.has_cls_token:
        raise UserError(
            f"{facts.architecture['name']} has no class token; leave --global-pool out."
        )
    if dist_head_init_std is not None and head == "single":
        raise UserError("dist_head_init_std is for a second head, and this has one; leave it out.")
    weights, architecture, added, dropped = _become(encoder, own_kind, head)
    changes: dict[str, Any] = {"num_classes": num_classes, "global_pool": global_pool}
    changes |= choose_pooling(architecture["name"], num_classes, q_pool)
    architecture["kwargs"] = architecture["kwargs"] | changes
    if img_size is not None:
        architecture["kwargs"] = with_img_size(architecture["kwargs"], (img_size, img_size))
    if num_heads is not None:
        architecture["num_heads"] = [num_heads] * facts.depth
    of_dist = head_init_std if dist_head_init_std is None else dist_head_init_std
    with seeded(seed):
        classifier = build_encoder(architecture, facts.origin)
        for linear, std in zip(_heads(classifier.model), (head_init_std, of_dist), strict=False):
            nn.init.zeros_(linear.weight)
            if std:  # torch divides by it
                nn.init.trunc_normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)
    own = _without_head(classifier.model.state_dict())
    for fresh, old in (("fc_norm", "norm"), ("norm", "fc_norm")):
        is_moved = f"{old}.weight" in weights and f"{old}.weight" not in own
        if is_moved and f"{fresh}.weight" in own:
            added, dropped = (*added, fresh), (*dropped, old)
    if head_rows is not None:
        _start_from_rows(encoder, classifier, head_rows, own_kind == head and not added)
    if not facts.num_classes and isinstance(encoder.model, Hiera):
        # The norm of its head: where there was no classifier it is of the pre-training.
        added, dropped = (*added, "head"), (*dropped, "head")
    weights = {name: value for name, value in weights.items() if _first(name) not in dropped}
    weights = _resize(weights, facts.input_grid, classifier)
    _check_all_fit({n: v for n, v in own.items() if _first(n) not in added}, weights, classifier)
    classifier.model.load_state_dict(classifier.model.state_dict() | weights)
    return classifier


def _start_from_rows(
    encoder: TimmEncoder, classifier: TimmEncoder, head_rows: Sequence[int], reads_the_same: bool
) -> None:
    name = encoder.facts.architecture["name"]
    if not encoder.facts.num_classes:
        raise UserError(f"{name} has no classifier to start from; leave its rows out.")
    if not reads_the_same:
        raise UserError(
            f"The classifier of {name} reads other features than the new one would; keep its "
            "--head and --global-pool, or start afresh."
        )
    for own, old in zip(_heads(classifier.model), _heads(encoder.model), strict=True):
        copy_rows(own, old, head_rows)


def _become(
    encoder: TimmEncoder, own_kind: HeadKind, head: HeadKind
) -> tuple[Weights, dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Weights and architecture with a head of another kind, and the parts added and dropped."""
    facts = encoder.facts
    weights = _without_head(encoder.model.state_dict())
    architecture = dict(facts.architecture)
    if head == own_kind:
        return weights, architecture, (), ()
    added, dropped = _ADDED[head], _DROPPED.get(head, ())
    weights = {name: value for name, value in weights.items() if _first(name) not in dropped}
    if head in _WIDENED:
        pos_embed = weights["pos_embed"]
        weights["pos_embed"] = torch.cat((pos_embed[:, :1], pos_embed), dim=1)
        architecture |= _architecture_of(weights, head, facts)
    else:
        architecture |= {"kind": head, "name": _NAMES[head]}
        architecture["kwargs"] = plain_shape(encoder)
    return weights, architecture, added, dropped


def _resize(weights: Weights, old_grid: Grid, classifier: TimmEncoder) -> Weights:
    """Positions, absolute and relative, of the classifier's image size."""
    new_grid = classifier.facts.input_grid
    if has_position_table(weights) and old_grid != new_grid:
        num_prefix_rows = weights["pos_embed"].shape[1] - old_grid[0] * old_grid[1]
        weights["pos_embed"] = interpolate_pos_embed(
            weights["pos_embed"], num_prefix_rows, old_grid, new_grid
        )
        log.info(interpolation_note(old_grid, new_grid))
    return resize_tables(weights, classifier.model)


def _check_all_fit(own: Weights, weights: Weights, classifier: TimmEncoder) -> None:
    unmatched = [name for names in compare(own, weights).values() for name in names]
    if unmatched:
        architecture = classifier.facts.architecture
        raise UserError(
            f"The encoder's weights do not fit {architecture['name']} with "
            f"{architecture['kwargs']['global_pool']} pooling: {', '.join(unmatched)}; choose "
            "another pooling or head, or keep the image size."
        )


def _check_head(encoder: TimmEncoder, own_kind: HeadKind, head: HeadKind) -> None:
    name = encoder.facts.architecture["name"]
    if own_kind not in (head, "single"):
        raise UserError(
            f"{name} was trained with a distillation token and heads of kind {own_kind}, which "
            f"can't become {head}; leave --head out: without --teacher the labels teach both heads."
        )
    if head != own_kind and not is_plain(encoder):
        raise UserError(
            f"Only a plain ViT with a class token and absolute positions can get a {head} head, "
            f"and {name} is none; choose another student, or leave --head out."
        )


def is_plain(encoder: TimmEncoder) -> bool:
    """A ViT as DeiT's: what its weights do not show must be the same, too."""
    facts, model = encoder.facts, encoder.model
    if type(model) is not VisionTransformer or model.pos_embed is None:
        return False
    num_rows = 1 + facts.grid[0] * facts.grid[1]
    return has_usual_blocks(model) and facts.has_cls_token and model.pos_embed.shape[1] == num_rows


def plain_shape(encoder: TimmEncoder) -> dict[str, Any]:
    """timm's arguments of a plain ViT's shape."""
    facts = encoder.facts
    return {
        "img_size": list(facts.img_size),
        "patch_size": facts.patch_size,
        "embed_dim": facts.embed_dim,
        "depth": facts.depth,
        "num_heads": facts.num_heads[0],
        "mlp_ratio": to_ratio(encoder.model.blocks[0].mlp.fc1.out_features, facts.embed_dim),
    }


def _architecture_of(weights: Weights, head: HeadKind, facts: EncoderFacts) -> dict[str, Any]:
    """The architecture of a plain ViT's weights with the parts of a two-headed one added."""
    telling = weights | {"dist_token": weights["cls_token"]}
    for name, rows in _WIDENED[head].items():
        telling[name] = torch.empty(rows, facts.embed_dim, device="meta")
    shape = read_shape(telling, facts.img_size)
    return to_architecture(shape, facts.num_heads, img_size=facts.img_size)


def _heads(model: nn.Module) -> list[nn.Linear]:
    classifier = model.get_classifier()
    return list(classifier) if isinstance(classifier, tuple) else [classifier]


def _without_head(weights: Weights) -> Weights:
    old_head = ("head", "head_dist", "attn_pool")
    return {
        name: value
        for name, value in weights.items()
        if _first(name) not in old_head or name.startswith("head.norm.")
    }


def _first(name: str) -> str:
    return name.partition(".")[0]
