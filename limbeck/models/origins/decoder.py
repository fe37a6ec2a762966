"""MAE's decoder out of every source that has one: published files, Hugging Face, finished runs.

Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377; small ones as in A Closer Look
at Self-Supervised Lightweight Vision Transformers, arXiv 2205.14443; those that predict a teacher's
features as in Generic-to-Specific Distillation of Masked Autoencoders, arXiv 2302.14771. Shapes are
read from the tensors; of the head count, which they do not tell, the published ones are known.
"""

import logging
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import UserError
from limbeck.models.encoder import Encoder
from limbeck.models.finished import Keepsake, is_finished_student, load_kept, weight_hash
from limbeck.models.mae import MaeDecoder
from limbeck.models.masked_autoencoder import MaskedAutoencoder
from limbeck.models.origins.companions import DECOUPLED_BLOCK
from limbeck.models.origins.files import SUFFIXES, FileInfo, read_weights
from limbeck.models.origins.huggingface import read_mae_decoder
from limbeck.models.origins.kept_decoder import (
    DECODER,
    FEATURE_DECODER,
    FEATURE_HEADS,
    FULL_FILE,
    PIXEL_PARTS,
    PROJECTIONS,
    check_form,
    check_reads_output,
    depth_note,
    fill_whole,
    predicts_features,
    read_shape,
)
from limbeck.models.origins.layouts import Grid, Weights, is_initial, name_list
from limbeck.models.origins.load import load_encoder
from limbeck.models.origins.names import check_source, split_source
from limbeck.models.origins.repository import read_hub_config
from limbeck.models.stated import check_size

log = logging.getLogger("limbeck")

NUM_HEADS = {512: 16, 96: 3, 192: 6}
"""Decoder width -> heads: MAE's own, and MAE-Lite's for ViT-Tiny and ViT-Small."""


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
    does not tell it. ``grid`` (gh, gw): another one than the decoder's interpolates its positions;
    one of as many patches is the decoder's own.
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
    if DECODER not in kept and FEATURE_DECODER not in kept:
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
    check_form(told, source)
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
    told = kept.get(DECODER) or kept.get(FEATURE_DECODER)
    if told is None:
        raise _no_decoder(source)
    return told


def _no_decoder(source: str) -> UserError:
    return UserError(
        f"{source} has no decoder, and the method learns from a decoder's tokens; take MAE's whole "
        f"file, {FULL_FILE} (mae_pretrain_vit_base.pth, timm's models and fine-tuned files are "
        "encoders alone), a ViTMAEForPreTraining of Hugging Face, or the run of a plain ViT by a "
        "method that reconstructs pixels (limbeck distill --method masked-pixel)."
    )


def describe_decoder(kept: Mapping[str, Keepsake], source: str) -> str:
    """The decoder among what is kept, in words for people; '' without one, or why it is none."""
    told = kept.get(DECODER) or kept.get(FEATURE_DECODER)
    if told is None:
        return ""
    try:
        width, depth, _, _ = read_shape(told, source)
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
        f"{f'. {note}' if (note := depth_note(told)) else ''}"
    )


def _build(
    kept: Keepsake, source: str, grid: Grid | None, num_heads: int | None, remedy: str
) -> MaeDecoder:
    """A decoder of the shape of the tensors, filled with them, in evaluation mode."""
    width = read_shape(kept, source, grid)[0]
    heads = num_heads or kept.facts.get("num_heads")
    if heads is None:
        raise UserError(
            f"The decoder of {source} is {width} wide, which does not tell its head count, and a "
            f"weights file does not store it; {remedy}."
        )
    with torch.device("meta"):
        skeleton = _skeleton(kept, source, grid, heads)
    check_size(skeleton, sum(value.numel() for value in kept.weights.values()), source)
    with torch.random.fork_rng(devices=[]):
        decoder = _skeleton(kept, source, grid, heads)
    fill_whole(decoder, kept, source)
    if note := depth_note(kept):
        log.warning("%s: %s", source, note)
    return decoder.eval()


def _skeleton(kept: Keepsake, source: str, grid: Grid | None, num_heads: int) -> MaeDecoder:
    width, depth, own_grid, has_cls_token = read_shape(kept, source, grid)
    patch_size = None
    if not predicts_features(kept.weights):
        rows = kept.weights["decoder_pred.weight"].shape[0]
        patch_size = isqrt(rows // 3)
        if patch_size**2 * 3 != rows:
            raise UserError(f"The decoder of {source} predicts {rows} values: no RGB patch.")
    embed_dim = kept.weights["decoder_embed.weight"].shape[1]
    return MaeDecoder(
        embed_dim, grid or own_grid, patch_size, width, depth, num_heads, has_cls_token
    )


def decoder_in(weights: Weights, info: FileInfo) -> dict[str, Keepsake]:
    """The decoder among a file's tensors under the name of its kind, whole or not; often none."""
    starts = ("decoder_", "mask_token", *(f"{name}." for name in PROJECTIONS))
    own: Weights = {n: v for n, v in weights.items() if n.startswith(starts)}
    # A Hiera's reads all stages at once, fused, and draws pixels channel by channel.
    is_of_stages = any(name.startswith("multi_scale_fusion_heads.") for name in weights)
    if is_of_stages or not any(name.startswith("decoder_") for name in own):
        return {}
    is_of_features = predicts_features(own)
    told = info.metadata.get("decoder_num_heads", "")
    embed = own.get("decoder_embed.weight", torch.empty(0, 0))
    width = embed.shape[0] if embed.ndim == 2 else 0
    known = FEATURE_HEADS if is_of_features else NUM_HEADS
    num_heads = int(told) if told.isdecimal() and int(told) else known.get(width)
    facts: dict[str, Any] = {} if num_heads is None else {"num_heads": num_heads}
    if (stated := info.metadata.get("decoder_depth", "")).isdecimal():
        facts["depth"] = int(stated)
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
