"""MAE's decoder out of every source that has one: published files, Hugging Face, finished runs.

Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377; small ones as in A Closer Look
at Self-Supervised Lightweight Vision Transformers, arXiv 2205.14443. Shapes are read from the
tensors; of the head count, which they do not tell, the published ones are known.
"""

import logging
from math import isqrt
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import UserError
from limbeck.models.finished import Keepsake, is_finished_student, load_kept
from limbeck.models.mae import MaeDecoder
from limbeck.models.masked_autoencoder import MaskedAutoencoder
from limbeck.models.origins.checkpoint import check_match, interpolation_note
from limbeck.models.origins.companions import DECOUPLED_BLOCK
from limbeck.models.origins.files import SUFFIXES, read_weights
from limbeck.models.origins.huggingface import FAMILIES, to_timm_names
from limbeck.models.origins.layouts import Grid, Weights, to_float32
from limbeck.models.origins.load import load_encoder
from limbeck.models.origins.names import check_source, split_source
from limbeck.models.origins.repository import WEIGHT_FILES, find_file, read_all, read_hub_config
from limbeck.ops.pos_embed import interpolate_pos_embed

log = logging.getLogger("limbeck")

DECODER = "decoder"
"""The name under which methods keep it."""
NUM_HEADS = {512: 16, 96: 3, 192: 6}
"""Decoder width -> heads: MAE's own, and MAE-Lite's for ViT-Tiny and ViT-Small."""


def load_keepsakes(source: str) -> dict[str, Keepsake]:
    """What a source of weights brings beside its encoder, by name; often nothing.

    A source is one of ``load_encoder``. Raises UserError for one that can't be found or read.
    """
    check_source(source)
    scheme, name = split_source(source)
    decoder = None
    if scheme == "hf":
        decoder = _read_hub(name)
    elif scheme is None:
        path = Path(name)
        is_part = path.name == f"{DECODER}.safetensors" and is_finished_student(path.parent)
        path = path.parent if is_part else path
        if is_finished_student(path):
            return load_kept(path)
        is_hub_file = path.name in ("model.safetensors", "pytorch_model.bin")
        folder = path.parent if is_hub_file else path
        if read_hub_config(folder / "config.json") is not None:
            decoder = _read_hub(folder)
        elif path.suffix in SUFFIXES and path.is_file():
            decoder = _read_file(path)
    return {} if decoder is None else {DECODER: decoder}


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
    kept = load_keepsakes(source).get(DECODER)
    if kept is None:
        raise UserError(
            f"{source} has no decoder; the run of a plain ViT by a method that reconstructs "
            "pixels has one (limbeck distill --method masked-pixel), and so has a full MAE file."
        )
    heads = num_heads or kept.facts.get("num_heads")
    width, depth, own_grid, has_cls_token = _read_shape(kept, source)
    if heads is None:
        raise UserError(
            f"The decoder of {source} is {width} wide, which does not tell its head count, and a "
            "weights file does not store it; name it (num_heads=...)."
        )
    rows = kept.weights["decoder_pred.weight"].shape[0]
    embed_dim = kept.weights["decoder_embed.weight"].shape[1]
    if rows % 3 or isqrt(rows // 3) ** 2 * 3 != rows:
        raise UserError(f"The decoder of {source} predicts {rows} values, which are no RGB patch.")
    with torch.random.fork_rng(devices=[]):
        decoder = MaeDecoder(
            embed_dim, grid or own_grid, isqrt(rows // 3), width, depth, heads, has_cls_token
        )
    _fill(decoder, kept, source)
    if kept.facts.get("before_block") is not None:
        log.info("%s: The decoder reads what enters block %d.", source, kept.facts["before_block"])
    return decoder.eval()


def load_autoencoder(source: str | Path, **overrides: Any) -> MaskedAutoencoder:
    """The encoder and the decoder of a source that has both; arguments as of ``load_encoder``.

    Raises UserError for a source without a decoder and for tensors that do not fit.
    """
    encoder = load_encoder(source, **overrides)
    return MaskedAutoencoder(encoder, load_decoder(source, grid=encoder.facts.grid))


def keep_decoder(decoder: MaeDecoder) -> Keepsake:
    """A decoder with what its tensors do not tell."""
    num_heads = decoder.decoder_blocks[0].attn.num_heads
    return Keepsake(decoder.state_dict(), {"num_heads": num_heads, "grid": list(decoder.grid)})


def fill_decoder(decoder: MaeDecoder, kept: Keepsake) -> None:
    """Load the decoder that a student's start brings into one that is built from options.

    Raises UserError, with the options to set, where they ask for another shape.
    """
    where = "The decoder of student.weights"
    check_reads_output(kept, where, "set fresh_decoder to start it anew")
    width, depth, _, _ = _read_shape(kept, where)
    own_heads = decoder.decoder_blocks[0].attn.num_heads
    # Where nobody knows them, the options do.
    theirs = (width, depth, kept.facts.get("num_heads", own_heads))
    own = (decoder.mask_token.shape[-1], len(decoder.decoder_blocks), own_heads)
    if theirs != own:
        raise UserError(
            f"{where} has width, blocks and heads {theirs}, and the method's options ask for "
            f"{own}; set decoder_embed_dim {theirs[0]}, decoder_depth {theirs[1]} and "
            f"decoder_num_heads {theirs[2]}, or fresh_decoder to start it anew."
        )
    _fill(decoder, kept, where)
    log.info("%s goes on: %d blocks of width %d, %d heads.", where, depth, width, own_heads)


def check_reads_output(kept: Keepsake, where: str, remedy: str) -> None:
    """Raise UserError for a decoder that was fitted to an earlier block than the last."""
    block = kept.facts.get("before_block")
    if block is not None:
        raise UserError(
            f"{where} was fitted to what enters block {block} (D2-MAE), not to the last tokens; "
            f"{remedy}."
        )


def _fill(decoder: MaeDecoder, kept: Keepsake, where: str) -> None:
    weights = kept.weights
    _, _, grid, has_cls_token = _read_shape(kept, where)
    if grid != decoder.grid:
        table = interpolate_pos_embed(
            weights["decoder_pos_embed"], int(has_cls_token), grid, decoder.grid
        )
        weights = weights | {"decoder_pos_embed": table}
        log.info("%s: %s", where, interpolation_note(grid, decoder.grid))
    check_match(decoder.state_dict(), weights, where)
    decoder.load_state_dict(weights)


def _read_shape(kept: Keepsake, where: str) -> tuple[int, int, Grid, bool]:
    """Width, depth, patch grid, and whether there is a CLS token."""
    weights = kept.weights
    num_axes = {"decoder_embed.weight": 2, "decoder_pos_embed": 3, "decoder_pred.weight": 2}
    wrong = [n for n, axes in num_axes.items() if n not in weights or weights[n].ndim != axes]
    numbers = [int(name.split(".")[1]) for name in weights if name.startswith("decoder_blocks.")]
    if wrong or not numbers:
        raise UserError(
            f"{where} is no whole decoder ({', '.join(wrong) or 'its blocks'} missing or of "
            "another form); get the file again."
        )
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


def _read_file(path: Path) -> Keepsake | None:
    weights, info = read_weights(path)
    starts = ("decoder_", "mask_token")
    own: Weights = {n: v for n, v in to_float32(weights).items() if n.startswith(starts)}
    # A Hiera's reads all stages at once, fused, and draws pixels channel by channel.
    is_of_stages = any(name.startswith("multi_scale_fusion_heads.") for name in weights)
    if is_of_stages or "decoder_embed.weight" not in own:
        return None
    told = info.metadata.get("decoder_num_heads", "")
    width = own["decoder_embed.weight"].shape[0]
    num_heads = int(told) if told.isdecimal() else NUM_HEADS.get(width)
    facts: dict[str, Any] = {} if num_heads is None else {"num_heads": num_heads}
    if info.network.is_decoupled:
        facts["before_block"] = DECOUPLED_BLOCK
    return Keepsake(own, facts)


def _read_hub(place: str | Path) -> Keepsake | None:
    """The decoder of transformers' ViTMAEForPreTraining; None where a repository has none."""
    source = str(place) if isinstance(place, Path) else f"hf:{place}"
    config = read_hub_config(find_file(place, ("config.json",), source))
    if config is None or config.get("model_type") != "vit_mae":
        return None
    weights = read_all(find_file(place, WEIGHT_FILES, source), place, source)
    # The second is what transformers 5 writes, the first what is published.
    start, layers = "decoder.", ("decoder_layers.", "decoder_encoder.layer.")
    own = {n.removeprefix(start): v for n, v in weights.items() if n.startswith(start)}
    if not own:
        return None
    blocks = {n.removeprefix("decoder_"): v for n, v in own.items() if n.startswith(layers)}
    named, _ = to_timm_names(blocks, FAMILIES["vit_mae"])
    others = {name: value for name, value in own.items() if not name.startswith(layers)}
    renamed = to_float32(others) | {f"decoder_{name}": value for name, value in named.items()}
    # 16 is what transformers' config stands for where it does not say.
    return Keepsake(renamed, {"num_heads": config.get("decoder_num_attention_heads", 16)})
