"""``limbeck convert``: a plain ViT as a file in MAE's published layout, a TinyViT in its own.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from limbeck.config import Width, options
from limbeck.errors import UserError
from limbeck.models.origins.names import check_source
from limbeck.recipes.run.checks import check_unset

SUFFIXES = (".pth", ".pt", ".safetensors")


@options
class ConvertConfig:
    """Write a plain ViT as MAE's file (arXiv 2111.06377), which many programs read, or a TinyViT as
    its authors' (arXiv 2207.10666): {"model": ...} in torch's format, or safetensors if the name
    ends so."""

    source: Annotated[str, tyro.conf.Positional] = ""
    """A run's folder, a weights file, timm:NAME or hf:NAME."""
    out: Annotated[str, tyro.conf.Positional] = ""
    """The file to write: .pth, .pt or .safetensors."""
    layout: Literal["mae", "mae-full", "tiny-vit", "segmenter"] = "mae"
    """mae: the encoder alone; mae-full: with its decoder, as for more pre-training; tiny-vit: a
    TinyViT with its classifier; segmenter: as TinyMIM and G2SD publish theirs (of upernet), or
    MAE-Lite (of semantic-fpn)."""
    num_heads: Width | None = None
    """Head count of all blocks: for a weights file that does not say it and whose width does not
    tell, and for a run whose last block was adapted to the teacher's."""
    decoder_num_heads: Width | None = None
    """Likewise the decoder's."""
    overwrite: bool = False
    """Replace the file if there is one."""


TOLD_BY_TENSORS = {"tiny-vit": "a TinyViT", "segmenter": "a segmenter"}
"""The layouts that tell head counts, and what is in them."""


@dataclass(frozen=True)
class Converted:
    """What was written: where, how many tensors and values, and what was not.

    ``num_heads`` are those that the layout does not tell, None where it does.
    """

    file: Path
    layout: str
    num_tensors: int
    num_values: int
    num_heads: int | None
    left_out: tuple[str, ...]


def check(config: ConvertConfig) -> None:
    """All that can be wrong without reading the source; raises UserError."""
    if not config.source or not config.out:
        raise UserError("A source and a file are needed; run: limbeck convert SOURCE OUT.pth.")
    check_source(config.source)
    out = Path(config.out)
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out} is no name of a weights file; let it end in {', '.join(SUFFIXES)}.")
    if out.exists() and not config.overwrite:
        raise UserError(f"{out} exists; choose another name, or replace it with --overwrite.")
    if out.is_dir():
        raise UserError(f"{out} is a folder; choose another name.")
    if not out.parent.is_dir():
        raise UserError(f"There is no folder {out.parent} to write in; make it first.")
    if config.layout in TOLD_BY_TENSORS:
        check_unset(config, ["num_heads"], f"with --layout {config.layout}")
    if config.layout != "mae-full":
        check_unset(config, ["decoder_num_heads"], "without --layout mae-full")


def convert(config: ConvertConfig) -> Converted:
    """Write the file, whole or not at all.

    Raises UserError for a source that can't be read, has no decoder where one is wanted, or is no
    network that the layout can hold; RunError where the file can't be written.
    """
    check(config)
    import torch
    from safetensors.torch import save

    from limbeck import __version__
    from limbeck.files import write_whole
    from limbeck.models.origins.decoder import load_decoder, load_keepsakes
    from limbeck.models.origins.kept_decoder import DECODER, check_reads_output
    from limbeck.models.origins.load import load_encoder
    from limbeck.models.origins.published import to_mae
    from limbeck.models.origins.segmenters import to_published_segmenter
    from limbeck.models.origins.tiny_vit import to_published

    heads = {} if config.num_heads is None else {"num_heads": config.num_heads}
    encoder = load_encoder(config.source, **heads)
    decoder = None
    if config.layout == "mae-full":
        decoder = load_decoder(config.source, num_heads=config.decoder_num_heads)
        kept = load_keepsakes(config.source)[DECODER]
        check_reads_output(kept, f"The decoder of {config.source}", "convert it with --layout mae")
    if config.layout in TOLD_BY_TENSORS:
        write = to_published if config.layout == "tiny-vit" else to_published_segmenter
        weights, left = write(encoder), []
        told = {"source": str(encoder.facts.origin.get("source", ""))}
    else:
        weights, told, left = to_mae(encoder, decoder)
    metadata = told | {"made_by": f"limbeck {__version__}", "layout": config.layout}
    out = Path(config.out)
    if out.suffix == ".safetensors":
        content = save(weights, metadata=metadata | {"format": "pt"})
        write_whole(out, lambda stream: stream.write(content))
    else:
        write_whole(out, lambda s: torch.save({"model": weights, "metadata": metadata}, s))
    return Converted(
        file=out,
        layout=config.layout,
        num_tensors=len(weights),
        num_values=sum(value.numel() for value in weights.values()),
        num_heads=None if config.layout in TOLD_BY_TENSORS else encoder.facts.num_heads[0],
        left_out=tuple(left),
    )


def report(done: Converted) -> str:
    """What was written, for the command line."""
    if done.num_heads is None:
        return (
            f"Wrote {done.file}: {TOLD_BY_TENSORS[done.layout]} in its authors' layout, "
            f"{done.num_tensors} tensors with {done.num_values:,} values."
        )
    parts = "encoder and decoder" if done.layout == "mae-full" else "encoder"
    left = f" Left out: {', '.join(done.left_out)}." if done.left_out else ""
    return (
        f"Wrote {done.file}: the {parts} in MAE's layout, {done.num_tensors} tensors with "
        f"{done.num_values:,} values. Its {done.num_heads} heads are stated in its metadata, "
        f"for the layout does not tell them.{left}"
    )
