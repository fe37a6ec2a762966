"""MAE's decoder out of every source that has one: published files, Hugging Face, finished runs.

Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377; small ones as in A Closer Look
at Self-Supervised Lightweight Vision Transformers, arXiv 2205.14443; those that predict a teacher's
features as in Generic-to-Specific Distillation of Masked Autoencoders, arXiv 2302.14771. Shapes are
read from the tensors; of the head count, which they do not tell, the published ones are known.
"""

import logging
import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.models.encoder import Encoder
from limbeck.models.finished import Keepsake, is_finished_student, load_kept, weight_hash
from limbeck.models.mae import MaeDecoder
from limbeck.models.masked_autoencoder import MaskedAutoencoder
from limbeck.models.origins.checkpoint import check_match, interpolation_note
from limbeck.models.origins.companions import DECOUPLED_BLOCK
from limbeck.models.origins.files import SUFFIXES, FileInfo, read_weights
from limbeck.models.origins.huggingface import read_mae_decoder
from limbeck.models.origins.layouts import Grid, Weights, is_initial, name_list, to_float32
from limbeck.models.origins.load import load_encoder
from limbeck.models.origins.names import check_source, split_source
from limbeck.models.origins.repository import read_hub_config
from limbeck.ops.pos_embed import interpolate_pos_embed

log = logging.getLogger("limbeck")

DECODER = "decoder"
"""The name under which methods keep one that predicts pixels."""
FEATURE_DECODER = "feature_decoder"
"""The name under which methods keep one that predicts a teacher's features; see
``keep_feature_decoder``."""
NUM_HEADS = {512: 16, 96: 3, 192: 6}
"""Decoder width -> heads: MAE's own, and MAE-Lite's for ViT-Tiny and ViT-Small."""
FEATURE_HEADS = {64: 4, 128: 4, 192: 8, 256: 8, 512: 16}
"""Likewise of the released students of G2SD (arXiv 2302.14771)."""
PROJECTIONS = ("decoderfeature_pred", "encoderfeature_pred")
"""What G2SD's students have beside the decoder: from its tokens, and from the encoder's."""
PIXEL_PARTS = ("decoder_norm.", "decoder_pred.")
"""What of a decoder only pixels need."""
FULL_FILE = "mae_pretrain_vit_base_full.pth"
"""MAE's published file with its decoder; mae_pretrain_vit_base.pth is the encoder alone."""
_START = "The decoder of student.weights"
_BLOCK = re.compile(r"decoder_blocks\.(\d+)\.")


def load_keepsakes(source: str) -> dict[str, Keepsake]:
    """What a source of weights brings beside its encoder, by name; often nothing.

    A source is one of ``load_encoder``. Raises UserError for one that can't be found or read.
    """
    check_source(source)
    scheme, name = split_source(source)
    if scheme == "hf":
        return _of_hub(name)
    if scheme is not None:
        return {}
    path = Path(name)
    kept_files = [f"{kept}.safetensors" for kept in (DECODER, FEATURE_DECODER)]
    if path.name in kept_files and is_finished_student(path.parent):
        path = path.parent
    if is_finished_student(path):
        return load_kept(path)
    folder = path.parent if path.name in ("model.safetensors", "pytorch_model.bin") else path
    if read_hub_config(folder / "config.json") is not None:
        return _of_hub(folder)
    if path.suffix in SUFFIXES and path.is_file():
        return decoder_in(*read_weights(path))
    return {}


def load_decoder(
    source: str | Path, *, num_heads: int | None = None, grid: Grid | None = None
) -> MaeDecoder:
    """The decoder of a masked autoencoder, in evaluation mode, from a source that has one.

    A source is a full MAE or MAE-Lite file, a ViTMAEForPreTraining of Hugging Face (``hf:NAME`` or
    a folder), or the run of a method that reconstructs pixels. ``num_heads``: for files whose width
    does not tell it. ``grid`` (gh, gw): another one than the decoder's interpolates its positions.
    Raises UserError for a source without a decoder and for tensors that do not fit.
    """
    source = str(source)
    everything = load_keepsakes(source)
    kept = everything.get(DECODER)
    if kept is None:
        what = f"{source} has no decoder"
        if FEATURE_DECODER in everything:
            what = f"The decoder of {source} predicts a teacher's features, no pixels (G2SD)"
        raise UserError(
            f"{what}; the run of a plain ViT by a method that reconstructs pixels has one (limbeck "
            "distill --method masked-pixel), and so has a full MAE file."
        )
    decoder = _build(kept, source, grid, num_heads, "name it (num_heads=...)")
    if kept.facts.get("before_block") is not None:
        log.info("%s: The decoder reads what enters block %d.", source, kept.facts["before_block"])
    return decoder


def load_autoencoder(source: str | Path, **overrides: Any) -> Encoder:
    """The encoder and the decoder of a source that has both, in evaluation mode, as one Encoder.

    A source is one of ``load_decoder``, or a student of G2SD (a run or a published file), whose
    decoder predicts features; its tokens are "decoder_tokens". ``overrides`` are those of
    ``load_encoder``; the decoder's positions follow ``img_size``. A function of one's own returns
    an Encoder that offers them.

    Raises UserError for a source without a whole decoder, for a decoder that was never trained or
    reads an inner block, and for tensors that do not fit.
    """
    source = str(source)
    check_source(source, any_model=True)
    scheme, name = split_source(source)
    if scheme == "own":
        encoder = load_encoder(source, **overrides)
        if not encoder.facts.decoder_depth:
            raise _no_decoder(f"What '{source}' returns")
        return encoder
    kept = {} if scheme == "timm" else load_keepsakes(source)
    if not kept.keys() & {DECODER, FEATURE_DECODER}:
        if scheme is None:
            load_encoder(source, **overrides)  # what is no source at all says so itself
        raise _no_decoder(source)
    if scheme is None and "visualize" in Path(name).name:
        log.warning(
            "%s looks like MAE's file for pictures, which is another model than %s: it predicts "
            "pixels that are not normalised, and its tensors look the same.", source, FULL_FILE,
        )  # fmt: skip
    if overrides.get("model_name") is not None:
        raise UserError(
            f"{source} is a masked autoencoder, whose tensors tell its architecture; leave "
            "model_name out."
        )
    told = _choose(kept, source)
    _read_shape(told, source)
    check_reads_output(told, f"The decoder of {source}", "choose another teacher")
    if is_initial(told.weights, "decoder_blocks.0.norm1"):
        raise UserError(
            f"The decoder of {source} was never trained (the first norm is as it started), so "
            f"there is nothing to learn from it; take one that was, such as {FULL_FILE}."
        )
    return join_decoder(load_encoder(source, **overrides), kept, source).eval()


def join_decoder(encoder: Encoder, kept: Mapping[str, Keepsake], source: str) -> MaskedAutoencoder:
    """An encoder with the decoder, on its grid, among what is ``kept`` beside it.

    Raises UserError, naming the ``source``, where there is none and where it does not fit.
    """
    told = _choose(kept, source)
    remedy = "write a file that tells it: limbeck convert --layout mae-full --decoder-num-heads N"
    decoder = _build(told, source, encoder.facts.grid, None, remedy)
    whole = MaskedAutoencoder(encoder, decoder, weight_hash(told.weights))
    log.info("%s: %s", source, whole.facts.origin["notes"][-1])
    return whole


def _choose(kept: Mapping[str, Keepsake], source: str) -> Keepsake:
    if not kept.keys() & {DECODER, FEATURE_DECODER}:
        raise _no_decoder(source)
    return kept[DECODER if DECODER in kept else FEATURE_DECODER]


def _no_decoder(source: str) -> UserError:
    return UserError(
        f"{source} has no decoder, and the method learns from a decoder's tokens; take MAE's whole "
        f"file, {FULL_FILE} (mae_pretrain_vit_base.pth, timm's models and fine-tuned files are "
        "encoders alone), a ViTMAEForPreTraining of Hugging Face, or the run of a plain ViT by a "
        "method that reconstructs pixels (limbeck distill --method masked-pixel)."
    )


def describe_decoder(kept: Mapping[str, Keepsake], source: str) -> str:
    """The decoder among what is kept, in words for people; '' without one, or why it is none."""
    if not kept.keys() & {DECODER, FEATURE_DECODER}:
        return ""
    told = _choose(kept, source)
    try:
        width, depth, _, _ = _read_shape(told, source)
        with torch.device("meta"):
            own = _skeleton(told, source, None, 1).state_dict()  # shapes do not depend on heads
    except UserError as error:
        return str(error)
    missing = sorted(own.keys() - told.weights.keys())
    if missing:
        return f"not whole, {len(missing)} tensors missing: {name_list(missing)}"
    heads = told.facts.get("num_heads")
    predicts = "pixels" if DECODER in kept else "a teacher's features (G2SD)"
    early = told.facts.get("before_block")
    return (
        f"{depth} blocks, width {width}, {heads or 'an unknown number of'} heads; predicts "
        f"{predicts}{'' if early is None else f' from what enters block {early} (D2-MAE)'}"
    )


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
    own_width, own_depth, _, _ = _read_shape(kept, _START)
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
    width, depth, _, _ = _read_shape(kept, _START)
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
    _fill(decoder, kept, _START)
    log.info("%s goes on: %d blocks of width %d, %d heads.", _START, depth, width, own_heads)


def check_reads_output(kept: Keepsake, where: str, remedy: str) -> None:
    """Raise UserError for a decoder that was fitted to an earlier block than the last."""
    block = kept.facts.get("before_block")
    if block is not None:
        raise UserError(
            f"{where} was fitted to what enters block {block} (D2-MAE), not to the last tokens; "
            f"{remedy}."
        )


def _build(
    kept: Keepsake, source: str, grid: Grid | None, num_heads: int | None, remedy: str
) -> MaeDecoder:
    """A decoder of the shape of the tensors, filled with them, in evaluation mode."""
    width = _read_shape(kept, source)[0]
    heads = num_heads or kept.facts.get("num_heads")
    if heads is None:
        raise UserError(
            f"The decoder of {source} is {width} wide, which does not tell its head count, and a "
            f"weights file does not store it; {remedy}."
        )
    with torch.random.fork_rng(devices=[]):
        decoder = _skeleton(kept, source, grid, heads)
    _fill(decoder, kept, source)
    return decoder.eval()


def _skeleton(kept: Keepsake, source: str, grid: Grid | None, num_heads: int) -> MaeDecoder:
    width, depth, own_grid, has_cls_token = _read_shape(kept, source)
    patch_size = None
    if not _predicts_features(kept.weights):
        rows = kept.weights["decoder_pred.weight"].shape[0]
        patch_size = isqrt(rows // 3)
        if patch_size**2 * 3 != rows:
            raise UserError(f"The decoder of {source} predicts {rows} values: no RGB patch.")
    embed_dim = kept.weights["decoder_embed.weight"].shape[1]
    return MaeDecoder(
        embed_dim, grid or own_grid, patch_size, width, depth, num_heads, has_cls_token
    )


def _fill(decoder: MaeDecoder, kept: Keepsake, where: str) -> None:
    starts = tuple(f"{name}." for name in PROJECTIONS)
    weights = {n: v for n, v in kept.weights.items() if not n.startswith(starts)}
    _, _, grid, has_cls_token = _read_shape(kept, where)
    if grid != decoder.grid:
        old = weights["decoder_pos_embed"]
        table = interpolate_pos_embed(old, int(has_cls_token), grid, decoder.grid)
        weights = weights | {"decoder_pos_embed": table}
        log.info("%s: %s", where, interpolation_note(grid, decoder.grid))
    own = decoder.state_dict()
    missing = sorted(own.keys() - weights.keys())
    if missing:
        raise _not_whole(where, f"{len(missing)} missing ({name_list(missing)})")
    check_match(own, weights, where)
    decoder.load_state_dict(weights)


def _not_whole(where: str, what: str) -> UserError:
    return UserError(
        f"{where} is no whole decoder: {what}; get the file again (MAE's with its decoder is "
        f"{FULL_FILE})."
    )


def _predicts_features(weights: Weights) -> bool:
    return any(name.startswith(f"{PROJECTIONS[0]}.") for name in weights)


def _read_shape(kept: Keepsake, where: str) -> tuple[int, int, Grid, bool]:
    """Width, depth, patch grid, and whether there is a CLS token."""
    weights = kept.weights
    if "unlike_mae" in kept.facts:
        raise UserError(
            f"{where} has {kept.facts['unlike_mae']}, which MAE's has not; take another source."
        )
    num_axes = {"decoder_embed.weight": 2, "decoder_pos_embed": 3}
    if not _predicts_features(weights):
        num_axes["decoder_pred.weight"] = 2
    wrong = [n for n, axes in num_axes.items() if n not in weights or weights[n].ndim != axes]
    numbers = [int(found[1]) for name in weights if (found := _BLOCK.match(name))]
    if wrong or not numbers:
        raise _not_whole(where, f"{name_list(wrong) or 'its blocks'} missing or of another form")
    width, rows = weights["decoder_embed.weight"].shape[0], weights["decoder_pos_embed"].shape[1]
    if "grid" in kept.facts:
        grid = (kept.facts["grid"][0], kept.facts["grid"][1])
        return width, max(numbers) + 1, grid, rows > grid[0] * grid[1]
    side = isqrt(rows)
    if rows - side * side not in (0, 1):
        raise UserError(
            f"{where} has {rows} positions, which are no square grid with or without a CLS token; "
            "only square ones are told by their number."
        )
    return width, max(numbers) + 1, (side, side), side * side < rows


def decoder_in(weights: Weights, info: FileInfo) -> dict[str, Keepsake]:
    """The decoder among a file's tensors under the name of its kind, whole or not; often none."""
    starts = ("decoder_", "mask_token", *(f"{name}." for name in PROJECTIONS))
    own: Weights = {n: v for n, v in to_float32(weights).items() if n.startswith(starts)}
    # A Hiera's reads all stages at once, fused, and draws pixels channel by channel.
    is_of_stages = any(name.startswith("multi_scale_fusion_heads.") for name in weights)
    if is_of_stages or not any(name.startswith("decoder_") for name in own):
        return {}
    is_of_features = _predicts_features(own)
    told = info.metadata.get("decoder_num_heads", "")
    embed = own.get("decoder_embed.weight", torch.empty(0, 0))
    width = embed.shape[0] if embed.ndim == 2 else 0
    known = FEATURE_HEADS if is_of_features else NUM_HEADS
    num_heads = int(told) if told.isdecimal() and int(told) else known.get(width)
    facts: dict[str, Any] = {} if num_heads is None else {"num_heads": num_heads}
    if info.network.is_decoupled:
        facts["before_block"] = DECOUPLED_BLOCK
    both = [weights.get(name, embed) for name in ("decoder_pos_embed", "pos_embed")]
    rows = [table.shape[1] for table in both if table.ndim == 3]
    if len(rows) == 2 and abs(rows[0] - rows[1]) > 1 and "reg_token" not in weights:
        facts["unlike_mae"] = f"{rows[0]} positions and its encoder {rows[1]}"
    if not is_of_features:
        return {DECODER: Keepsake(own, facts)}
    own = {name: value for name, value in own.items() if not name.startswith(PIXEL_PARTS)}
    return {FEATURE_DECODER: Keepsake(own, facts)}


def _of_hub(place: str | Path) -> dict[str, Keepsake]:
    found = read_mae_decoder(place)
    return {} if found is None else {DECODER: Keepsake(*found)}
