"""``limbeck embed``: a vector for each image, in parquet files that any tool reads.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from limbeck.config import options, to_plain
from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.recipes.run import checks
from limbeck.recipes.run.options import EmbedOptions

if TYPE_CHECKING:
    import numpy as np

    from limbeck.data.source import Source

log = logging.getLogger("limbeck")

PART_ROWS, PART_SECONDS = 8192, 60.0
"""A file is written after so many images, or so long: what a kill can cost."""


@options
class EmbedConfig:
    """Show images to an encoder and keep a vector of each."""

    images: Annotated[str, tyro.conf.Positional] = ""
    """The images: whatever --data of a training takes."""
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = ""
    """The encoder: a run's folder, a weights file, timm:NAME, hf:NAME."""
    out: Path = Path("embeddings")
    """Folder for vectors/part-00000.parquet and so on: a row for each image, its name (key), class
    (label, where it has one) and vector (embedding)."""
    overwrite: bool = False
    """Replace what another encoder, or other options, have left there."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the numbers on the disk."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    data: DataOptions = DataOptions()
    embed: EmbedOptions = EmbedOptions()


@dataclass(frozen=True)
class Embedded:
    """Where the vectors are, of how many images (``num_new`` of them made by this call), how wide
    they are, and how many images could not be read."""

    out: Path
    num_images: int
    num_new: int
    num_skipped: int
    width: int


def check(config: EmbedConfig) -> DataOptions:
    """All that can be wrong without opening an image or a network; the data that is meant."""
    if config.images and config.data.root:
        raise UserError(f"{config.images} and --data {config.data.root} name the images twice.")
    data = replace(config.data, root=config.images or config.data.root)
    if not data.root or not config.model:
        raise UserError("Images and a model are needed; run: limbeck embed FOLDER --model RUN.")
    names = ["eval_root", "eval_split", "holdout_ratio", "max_holdout", "label_fraction"]
    checks.check_unset(data, names, "here: all images are embedded", "--data.")
    checks.check_data(data)
    checks.check_source(config.model)
    return data


def embed(config: EmbedConfig) -> Embedded:
    """Embed all images, or those that are not in the folder yet.

    Raises UserError for bad input and for a folder with something else.
    """
    data = check(config)
    from limbeck.data.open import open_source
    from limbeck.data.skipped import SkippedLog
    from limbeck.data.source import Subset
    from limbeck.engine.checkpoint import open_run
    from limbeck.engine.distributed import ranks_session
    from limbeck.models.origins.load import load_encoder

    checks.check_one_process("embed is one process")
    with ranks_session(config.device) as ranks:
        source = open_source(data.root, data, data.split)
        encoder = load_encoder(config.model).to(ranks.device).eval()
        facts = encoder.facts
        if "output" not in encoder.offered_taps():
            raise UserError(f"{config.model} has no vector of an image; name its encoder.")
        plain = to_plain(config)
        run = open_run(
            config.out,
            {"verb": "embed", **{k: v for k, v in plain.items() if k not in ("images", "data")}},
            # Images may come and go; of another place they would be taken for these.
            {"model": facts.identity, "root": str(Path(data.root).absolute())},
            overwrite=config.overwrite,
        )
        vectors_dir = run.dir / "vectors"
        vectors_dir.mkdir(exist_ok=True)
        parts = sorted(vectors_dir.glob("part-*.parquet"))
        done = {key for part in parts for key in _keys(part)}
        next_part = 1 + max((int(part.stem[5:]) for part in parts), default=-1)
        left = [index for index in range(len(source)) if source.key(index) not in done]
        if done:
            log.info("%s of %s images are there already.", len(done), len(source))
        skipped = SkippedLog(run.dir / "skipped.jsonl", len(source), data.max_bad_ratio)
        todo, num_new = Subset(source, left), 0
        gathered = _gathered(config, data, encoder, todo, skipped) if left else ()
        for number, (keys, labels, vectors) in enumerate(gathered, next_part):
            file = vectors_dir / f"part-{number:05d}.parquet"
            _write(file, keys, labels, vectors.astype(config.dtype))
            num_new += len(keys)
            log.info("%s of %s images", f"{num_new:,}", f"{len(left):,}")
        run.finish()
    return Embedded(run.dir, len(done) + num_new, num_new, len(left) - num_new, facts.output_dim)


def _gathered(
    config: EmbedConfig, data: DataOptions, encoder: Any, source: Source, skipped: Any
) -> Iterator[tuple[list[str], list[str] | None, np.ndarray]]:
    """Rows of as many images as a file has: their keys, names of classes, and vectors."""
    import numpy as np

    from limbeck.evaluation.embed import embed as embed_batches
    from limbeck.recipes.run.probes import centre_crops

    device, shown = next(encoder.parameters()).device, config.embed
    keys: list[str] = []
    labels: list[str] = []
    vectors: list[np.ndarray] = []
    begin = time.monotonic()
    for batch in centre_crops(encoder, source, shown, data, device, skipped):
        said = embed_batches(encoder, [batch], pool=shown.pool, precision=config.precision)
        keys += said.keys
        vectors.append(said.features.numpy())
        if said.labels is not None:
            labels += [source.classes[label] for label in said.labels.tolist()]
        if len(keys) >= PART_ROWS or time.monotonic() - begin > PART_SECONDS:
            yield keys, labels or None, np.concatenate(vectors)
            keys, labels, vectors, begin = [], [], [], time.monotonic()
    if keys:
        yield keys, labels or None, np.concatenate(vectors)


def _write(file: Path, keys: list[str], labels: list[str] | None, vectors: np.ndarray) -> None:
    from limbeck.data.table_images import import_pyarrow
    from limbeck.files import write_whole

    pyarrow = import_pyarrow()
    flat = pyarrow.array(vectors.reshape(-1))
    columns = {"key": pyarrow.array(keys)}
    if labels is not None:
        columns["label"] = pyarrow.array(labels)
    columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = pyarrow.table(columns)
    write_whole(file, lambda target: pyarrow.parquet.write_table(table, target))


def _keys(part: Path) -> list[str]:
    from limbeck.data.table_images import import_pyarrow

    try:
        table = import_pyarrow().parquet.read_table(part, columns=["key"])
    except Exception as error:
        raise UserError(
            f"{part} is damaged; delete it: its images are then embedded again."
        ) from error
    keys: list[str] = table["key"].to_pylist()
    return keys


def report(found: Embedded) -> str:
    """Where to look and how to read it, for the command line."""
    skipped = (
        f" {found.num_skipped:,} could not be read (skipped.jsonl)." if found.num_skipped else ""
    )
    folder = found.out / "vectors"
    return (
        f"{found.num_images:,} vectors of {found.width} numbers in {folder}, {found.num_new:,} of "
        f"them new.{skipped}\n"
        f'datasets:  rows = load_dataset("parquet", data_dir="{folder}", split="train")\n'
        f'numpy:     column = pq.read_table("{folder}")["embedding"].combine_chunks()\n'
        f"           vectors = column.flatten().to_numpy().reshape(-1, {found.width})"
    )
