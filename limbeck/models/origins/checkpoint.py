"""Weights files as encoders: recognised, and loaded whole or not at all."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import UserError
from limbeck.models.beit_bias import resize_tables
from limbeck.models.finished import weight_hash
from limbeck.models.origins.architecture import VitShape, grid_note, read_shape, to_architecture
from limbeck.models.origins.beit import check_indices
from limbeck.models.origins.files import FileInfo, left_out_notes
from limbeck.models.origins.hierarchical import Staged, read_staged
from limbeck.models.origins.layouts import (
    IMAGENET_NORM,
    MAE_LITE_HEADS,
    Grid,
    Layout,
    Weights,
    find_heads,
    name_list,
    recognise,
    split_left_out,
)
from limbeck.models.shapes import pooling_of
from limbeck.models.stated import check_size
from limbeck.models.tensor_files import compare
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.vit import build_encoder, wrap
from limbeck.models.vit_det import AXIS_TABLES
from limbeck.models.windows import to_grid, with_img_size
from limbeck.ops.pos_embed import interpolate_pos_embed

log = logging.getLogger("limbeck")

_CLASSIFIERS = ("head.weight", "head.bias", "head.fc.", "head_dist.")


def load_weights(
    weights: Weights,
    info: FileInfo,
    path: Path,
    img_size: Grid | None,
    patch_size: int | None,
    num_heads: int | tuple[int, ...] | None,
    num_classes: int | None,
) -> TimmEncoder:
    """The encoder in a file of a published layout that ``read_weights`` has read.

    Raises UserError, with the names of the tensors, where the layout is unknown or any tensor does
    not fit; nothing is ever loaded in part.
    """
    staged = read_staged(weights, img_size, num_heads)
    if staged is not None:
        return load_staged(staged, info, path, img_size, patch_size, num_classes)
    check_indices(weights, str(path))
    layout = recognise(weights, info.network.program)
    named, left = split_left_out(layout, layout.convert(weights))
    left = info.network.left_out | left
    notes = left_out_notes(left) + info.notes
    shape = read_shape(named, img_size)
    check_patch_size(shape.patch_size, patch_size, path)
    _check_told(layout, shape, path)
    told = str(shape.num_heads or info.metadata.get("num_heads", ""))
    heads, known_from = find_heads(layout, shape.embed_dim, shape.depth, num_heads, told)
    notes.append(f"Head counts {heads_text(heads)}: {known_from}.")
    notes.append(grid_note(shape, img_size))
    mean, std = IMAGENET_NORM
    notes.append(
        "ImageNet's mean and std, as this layout has."
        if layout.is_imagenet
        else "ImageNet's mean and std are assumed: a weights file does not tell them."
    )
    if layout.name == "tinymim" and shape.embed_dim == 192 and num_heads is None:
        notes.append("TinyMIM*-T's own pre-training file looks the same; pass num_heads=12 for it.")
    if layout.name.startswith("g2sd") and shape.embed_dim == 192 and num_heads is None:
        notes.append("G2SD's ViT-Ti with 12 heads looks the same; pass num_heads=12 for it.")
    own = MAE_LITE_HEADS.get(shape.embed_dim, heads[:1])[0]
    others = ("tinymim", "g2sd", "mae_full")  # which are not MAE-Lite's, or have their own note
    is_guess = num_heads is None and not told and not layout.name.startswith(others)
    if is_guess and own != heads[0]:
        notes.append(
            f"MAE-Lite's network of this width looks the same without its checkpoint's entries; "
            f"pass num_heads={own} for it."
        )
    if layout.name == "mae_lite_distilled":
        notes.append("The norm besides fc_norm is taken for the one of the class token.")
    if layout.name == "tinymim_tstar":
        notes.append(
            "The order of pooling, wide layer and fc_norm was never published; it is that of "
            "limbeck.models.tinymim_star."
        )
    architecture = to_architecture(shape, heads, img_size=img_size or shape.img_size)
    architecture |= {"mean": list(mean), "std": list(std)}
    named = drop_classifier(named, architecture, num_classes, notes)
    origin = {"source": str(path), "layout": layout.name, "licence": None, "notes": notes}
    return assemble(named, architecture, origin, shape.grid, shape.num_prefix_rows)


def load_staged(
    staged: Staged,
    info: FileInfo,
    path: Path,
    img_size: Grid | None,
    patch_size: int | None,
    num_classes: int | None,
) -> TimmEncoder:
    """The hierarchical encoder in a weights file; arguments and errors as ``load_weights``."""
    if patch_size is not None:
        raise UserError(f"{path} is of an encoder of stages; leave patch_size away.")
    notes = [
        *left_out_notes(info.network.left_out | staged.left_out),
        *info.notes,
        *staged.notes,
        f"Head counts {heads_text(staged.num_heads)}: {staged.heads_known_from}.",
        "ImageNet's mean and std, as this layout has.",
    ]
    mean, std = IMAGENET_NORM
    architecture = staged.architecture | {"mean": list(mean), "std": list(std)}
    weights = drop_classifier(staged.weights, architecture, num_classes, notes)
    origin = {"source": str(path), "layout": staged.layout, "licence": None, "notes": notes}
    own_size = to_grid(architecture["kwargs"]["img_size"])
    encoder = at_size(weights, architecture, origin, staged.grid, img_size or own_size)
    encoder.mask_token = staged.mask_token
    return encoder


def _check_told(layout: Layout, shape: VitShape, path: Path) -> None:
    """Refuse the ViTs of which timm has kinds that differ in more than the tensors show."""
    if layout.name == "timm_vit" and (shape.has_pre_norm or shape.global_pool == "map"):
        raise UserError(
            f"{path} is of a CLIP or SigLIP in timm's names, and such a file does not tell the "
            "activation; name the model (model_name='vit_base_patch16_clip_224'), or pass the "
            "folder with its config.json."
        )


def heads_text(heads: Sequence[int]) -> str:
    """Head counts in words: one number, or the others and the last."""
    if len(set(heads)) == 1:
        return str(heads[0])
    if len(set(heads[:-1])) == 1:
        return f"{heads[0]}, {heads[-1]} in the last block"
    return ", ".join(map(str, heads))


def check_patch_size(own: int, asked: int | None, where: Path | str) -> None:
    """Raise UserError where another patch size is asked for than the weights have."""
    if asked not in (None, own):
        raise UserError(
            f"{where} has patches of {own} pixels, not {asked}; leave patch_size away, and choose "
            "img_size for another grid."
        )


def drop_classifier(
    weights: Weights, architecture: dict[str, Any], num_classes: int | None, notes: list[str]
) -> Weights:
    """The weights without their classifier where ``num_classes`` is 0; ``architecture`` follows.

    Raises UserError for any other number than that of the weights: a new classifier would be
    random.
    """
    own = architecture["kwargs"]["num_classes"]
    if num_classes in (None, own):
        return weights
    if num_classes:
        raise UserError(
            f"The weights have {own} classes, not {num_classes}; leave num_classes away (limbeck "
            "finetune makes a new classifier)."
        )
    pooling = pooling_of(architecture["name"], 0)
    architecture["kwargs"] = architecture["kwargs"] | {"num_classes": 0} | pooling
    notes.append("The classifier was left out as asked.")
    return {n: v for n, v in weights.items() if not n.startswith(_CLASSIFIERS)}


def assemble(
    weights: Weights,
    architecture: dict[str, Any],
    origin: dict[str, Any],
    grid: Grid,
    num_prefix_rows: int,
    *,
    antialias: bool = True,
) -> TimmEncoder:
    """An encoder of this architecture with exactly these weights (timm's names), to evaluate.

    ``grid`` and ``num_prefix_rows`` are those of the weights' position table, which is
    interpolated where the architecture has another grid. ``facts.origin["weight_hash"]`` is that of
    ``weights`` as given, so it does not depend on the image size. Raises UserError that lists every
    missing and unexpected name and every wrong shape.
    """
    with torch.device("meta"):
        skeleton = build_encoder(architecture, origin)
    notes = list(origin["notes"])
    origin = origin | {"notes": notes, "weight_hash": weight_hash(weights)}
    new_grid = skeleton.facts.input_grid
    if has_position_table(weights) and grid != new_grid:
        table = interpolate_pos_embed(
            weights["pos_embed"], num_prefix_rows, grid, new_grid, antialias=antialias
        )
        weights = weights | {"pos_embed": table}
        notes.append(interpolation_note(grid, new_grid))
    weights = resize_tables(weights, skeleton.model)
    check_match(skeleton.model.state_dict(), weights, origin["source"])
    check_size(skeleton, sum(value.numel() for value in weights.values()), origin["source"])
    persistent = skeleton.model.state_dict().keys()
    if all(name in persistent for name, _ in skeleton.model.named_buffers()):
        model = skeleton.model
        model.load_state_dict(weights, assign=True)
    else:
        # Tables that are computed when a model is built (rotary positions) need a real build.
        with torch.random.fork_rng(devices=[]):
            model = build_encoder(architecture, origin).model
        model.load_state_dict(weights)
    for note in notes:
        log.info("%s: %s", origin["source"], note)
    return wrap(model, architecture=architecture, origin=origin).eval()


def at_size(
    weights: Weights, architecture: dict[str, Any], origin: dict[str, Any], grid: Grid, size: Grid
) -> TimmEncoder:
    """``assemble`` for images of another ``size`` (H, W); ``grid`` is that of the weights."""
    architecture = architecture | {"kwargs": with_img_size(architecture["kwargs"], size)}
    num_prefix_rows = 0
    if has_position_table(weights):
        num_prefix_rows = weights["pos_embed"].shape[1] - grid[0] * grid[1]
    return assemble(weights, architecture, origin, grid, num_prefix_rows)


def resized(encoder: TimmEncoder, size: Grid) -> TimmEncoder:
    """The encoder for images of another size (H, W), its positions interpolated."""
    facts = encoder.facts
    weights = encoder.model.state_dict()
    return at_size(weights, facts.architecture, facts.origin, facts.input_grid, size)


def has_position_table(weights: Weights) -> bool:
    """Whether positions are a table (1, prefix rows + gh * gw, D), a row for each place.

    Some Hieras have one of a fixed size, (1, D, gh, gw), for all grids, and so has a ViTDet.
    """
    is_fixed = any(name.endswith(AXIS_TABLES) for name in weights)
    return not is_fixed and "pos_embed" in weights and weights["pos_embed"].ndim == 3


def interpolation_note(grid: Grid, to_grid: Grid) -> str:
    """The sentence that says that a position table was resized."""
    return (
        f"Positions interpolated from {grid[0]} x {grid[1]} to {to_grid[0]} x {to_grid[1]} patches."
    )


def check_match(own: Weights, weights: Weights, where: str) -> None:
    """Raise UserError unless names and shapes are the same, listing what is not."""
    problems = [
        f"{len(names)} {kind} ({name_list(names)})"
        for kind, names in compare(own, weights).items()
        if names
    ]
    if problems:
        raise UserError(
            f"{where} does not fit: {'; '.join(problems)}. Nothing is loaded in part; "
            "'limbeck inspect' shows what the file is."
        )
