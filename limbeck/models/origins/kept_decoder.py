"""A masked autoencoder's decoder as it is kept beside an encoder: tensors by published name.

Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377; those that predict a teacher's
features as in Generic-to-Specific Distillation of Masked Autoencoders, arXiv 2302.14771. Where they
come from is in ``decoder.py``.
"""

import logging
import re
from collections.abc import Mapping
from math import isqrt

from torch import nn

from limbeck.errors import UserError
from limbeck.models.finished import Keepsake
from limbeck.models.mae import MaeDecoder
from limbeck.models.origins.checkpoint import check_match, interpolation_note
from limbeck.models.origins.layouts import Grid, Weights, has_axes, name_list
from limbeck.models.tensor_files import check_finite
from limbeck.ops.pos_embed import interpolate_pos_embed

log = logging.getLogger("limbeck")

DECODER = "decoder"
"""The name under which methods keep one that predicts pixels."""
FEATURE_DECODER = "feature_decoder"
"""The name under which methods keep one that predicts a teacher's features; see
``keep_feature_decoder``."""
FEATURE_HEADS = {64: 4, 128: 4, 192: 8, 256: 8, 512: 16}
"""Such a decoder's width -> heads, of the released students (arXiv 2302.14771)."""
RELEASED_DEPTHS = {512: 8, 96: 1, 192: 1}
"""The width of a decoder that predicts pixels -> blocks: MAE's, and MAE-Lite's two."""
PROJECTIONS = ("decoderfeature_pred", "encoderfeature_pred")
"""What G2SD's students have beside the decoder: from its tokens, and from the encoder's."""
PIXEL_PARTS = ("decoder_norm.", "decoder_pred.")
"""What of a decoder only pixels need."""
FULL_FILE = "mae_pretrain_vit_base_full.pth"
"""MAE's published file with its decoder; mae_pretrain_vit_base.pth is the encoder alone."""
_START = "The decoder of student.weights"
_BLOCK = re.compile(r"decoder_blocks\.(\d+)\.")


def keep_decoder(decoder: MaeDecoder) -> Keepsake:
    """A decoder with what its tensors do not tell."""
    num_heads = decoder.decoder_blocks[0].attn.num_heads
    return Keepsake(decoder.state_dict(), {"num_heads": num_heads, "grid": list(decoder.grid)})


def keep_feature_decoder(decoder: MaeDecoder, projections: Mapping[str, nn.Module]) -> Keepsake:
    """A decoder that predicts a teacher's tokens, with the projections to their width.

    The tensors have the names of G2SD's released files: the decoder's own (``decoder_embed.*``,
    ``mask_token``, ``decoder_pos_embed``, ``decoder_blocks.i.*``) without final norm and pixel
    head, which nothing trains, and those of each projection under its name in ``PROJECTIONS``
    (``decoderfeature_pred.fc1.*`` and ``.fc2.*``; ``encoderfeature_pred`` where there is one). The
    facts are "num_heads" and "grid", as of ``keep_decoder``.
    """
    kept = keep_decoder(decoder)
    weights = {n: v for n, v in kept.weights.items() if not n.startswith(PIXEL_PARTS)}
    for name, projection in projections.items():
        weights |= {f"{name}.{own}": value for own, value in projection.state_dict().items()}
    return Keepsake(weights, kept.facts)


def fill_feature_decoder(
    decoder: MaeDecoder, projections: Mapping[str, nn.Module], kept: Keepsake
) -> None:
    """Load what ``keep_feature_decoder`` kept into a decoder without pixels and its projections.

    A projection that is not brought starts anew, and it is said. Raises UserError where the
    options, or the width of the teacher's tokens, ask for another shape.
    """
    _fill_as_asked(decoder, kept)
    for name, projection in projections.items():
        start = f"{name}."
        theirs = {n.removeprefix(start): v for n, v in kept.weights.items() if n.startswith(start)}
        if not theirs:
            log.info("student.weights bring no %s: it starts anew.", name)
            continue
        try:
            check_match(projection.state_dict(), theirs, f"{name} of student.weights")
        except UserError as error:
            raise UserError(
                f"{error} It was made for a teacher of another width: name such a teacher, or set "
                "fresh_decoder to start it anew."
            ) from error
        projection.load_state_dict(theirs)


def complete_shape(
    kept: Keepsake, width: int | None, depth: int | None, num_heads: int | None
) -> tuple[int, int, int]:
    """Width, blocks and heads that are asked for; where None, of what a student's start brings.

    Raises UserError where nobody tells the heads.
    """
    own_width, own_depth, _, _ = read_shape(kept, _START)
    num_heads = num_heads or kept.facts.get("num_heads")
    if num_heads is None:
        raise UserError(
            f"{_START} is {own_width} wide, which does not tell its heads; set decoder_num_heads, "
            "or fresh_decoder to start it anew."
        )
    return width or own_width, depth or own_depth, num_heads


def fill_decoder(decoder: MaeDecoder, kept: Keepsake) -> None:
    """Load the decoder that a student's start brings into one that is built from options.

    Raises UserError, with the options to set, where they ask for another shape.
    """
    check_reads_output(kept, _START, "set fresh_decoder to start it anew")
    _fill_as_asked(decoder, kept)


def _fill_as_asked(decoder: MaeDecoder, kept: Keepsake) -> None:
    width, depth, _, _ = read_shape(kept, _START)
    own_heads = decoder.decoder_blocks[0].attn.num_heads
    # Where nobody knows them, the options do.
    theirs = (width, depth, kept.facts.get("num_heads", own_heads))
    own = (decoder.mask_token.shape[-1], len(decoder.decoder_blocks), own_heads)
    if theirs != own:
        raise UserError(
            f"{_START} has width, blocks and heads {theirs}, and the method's options ask for "
            f"{own}; set decoder_embed_dim {theirs[0]}, decoder_depth {theirs[1]} and "
            f"decoder_num_heads {theirs[2]}, or fresh_decoder to start it anew."
        )
    fill_whole(decoder, kept, _START)
    log.info("%s goes on: %d blocks of width %d, %d heads.", _START, depth, width, own_heads)


def check_reads_output(kept: Keepsake, where: str, remedy: str) -> None:
    """Raise UserError for a decoder that was fitted to an earlier block than the last."""
    block = kept.facts.get("before_block")
    if block is not None:
        raise UserError(
            f"{where} was fitted to what enters block {block} (D2-MAE), not to the last tokens; "
            f"{remedy}."
        )


def fill_whole(decoder: MaeDecoder, kept: Keepsake, where: str) -> None:
    """Load what was kept into a decoder of its shape; positions of another grid are interpolated.

    Raises UserError for tensors that are missing or do not fit; ``where`` names the source.
    """
    starts = tuple(f"{name}." for name in PROJECTIONS)
    weights = {n: v for n, v in kept.weights.items() if not n.startswith(starts)}
    _, _, grid, has_cls_token = read_shape(kept, where, decoder.grid)
    if grid != decoder.grid:
        old = weights["decoder_pos_embed"]
        table = interpolate_pos_embed(old, int(has_cls_token), grid, decoder.grid)
        weights = weights | {"decoder_pos_embed": table}
        log.info("%s: %s", where, interpolation_note(grid, decoder.grid))
    own = decoder.state_dict()
    missing = sorted(own.keys() - weights.keys())
    if missing:
        raise not_whole(where, f"{len(missing)} missing ({name_list(missing)})")
    check_match(own, weights, where)
    check_finite(weights, where)
    decoder.load_state_dict(weights)


def not_whole(where: str, what: str) -> UserError:
    """The error for a decoder of which something is missing."""
    return UserError(
        f"{where} is no whole decoder: {what}; get the file again (MAE's with its decoder is "
        f"{FULL_FILE})."
    )


def predicts_features(weights: Weights) -> bool:
    """Whether a decoder's tensors are of one that predicts a teacher's features."""
    return any(name.startswith(f"{PROJECTIONS[0]}.") for name in weights)


def read_shape(
    kept: Keepsake, where: str, stated: Grid | None = None
) -> tuple[int, int, Grid, bool]:
    """Width, depth, patch grid, and whether there is a CLS token.

    The grid is the ``stated`` one where its patches are as many as the positions, else a square.
    """
    weights, depth = kept.weights, check_form(kept, where)
    width, rows = weights["decoder_embed.weight"].shape[0], weights["decoder_pos_embed"].shape[1]
    if "grid" in kept.facts:
        grid = (kept.facts["grid"][0], kept.facts["grid"][1])
        return width, depth, grid, rows > grid[0] * grid[1]
    if stated is not None and rows - stated[0] * stated[1] in (0, 1):
        return width, depth, stated, rows > stated[0] * stated[1]
    side = isqrt(rows)
    if rows - side * side not in (0, 1):
        raise UserError(
            f"{where} has {rows} positions, which are no square grid with or without a CLS token; "
            "name the image size they were made for (img_size=(height, width), or grid=...)."
        )
    return width, depth, (side, side), side * side < rows


def check_form(kept: Keepsake, where: str) -> int:
    """How many blocks. Raises UserError where what tells the shape is missing or unlike MAE's."""
    weights = kept.weights
    if "unlike_mae" in kept.facts:
        raise UserError(
            f"{where} has {kept.facts['unlike_mae']}, which MAE's has not; take another source."
        )
    num_axes = {"decoder_embed.weight": 2, "decoder_pos_embed": 3}
    if not predicts_features(weights):
        num_axes["decoder_pred.weight"] = 2
    wrong = [n for n, k in num_axes.items() if n not in weights or not has_axes(weights[n], k)]
    numbers = [int(found[1]) for name in weights if (found := _BLOCK.match(name))]
    if wrong or not numbers or max(numbers) >= len(weights):
        raise not_whole(where, f"{name_list(wrong) or 'its blocks'} missing or of another form")
    depth = max(numbers) + 1
    stated = kept.facts.get("depth", depth)
    if stated != depth:
        raise not_whole(where, f"it states {stated} blocks and has {depth}")
    return depth


def depth_note(kept: Keepsake) -> str:
    """A sentence where the released decoders of this width have another depth; else ''.

    One that lost its last blocks is a whole one that is shallower: only what states its depth (a
    run, a file of limbeck convert, a config of Hugging Face) tells the two apart.
    """
    width, depth = kept.weights["decoder_embed.weight"].shape[0], check_form(kept, "The decoder")
    usual = depth if predicts_features(kept.weights) else RELEASED_DEPTHS.get(width, depth)
    if depth == usual:
        return ""
    return (
        f"The decoder has {depth} blocks, and the released ones {width} wide have {usual}: if its "
        f"file lost some, what it gives is wrong."
    )
