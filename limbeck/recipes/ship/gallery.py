"""The vectors of a gallery, kept in a file: each image of it is embedded once, and again where it
has changed."""

from __future__ import annotations

import os
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from limbeck.data.folder import FilesSource
from limbeck.data.options import DataOptions
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import BadImage, Source, Subset
from limbeck.documents import parse_json, to_json
from limbeck.errors import UserError
from limbeck.evaluation.answers import Gallery
from limbeck.evaluation.embed import embed
from limbeck.files import write_bytes
from limbeck.models.encoder import Encoder
from limbeck.models.tensor_files import read_safetensors
from limbeck.recipes.run.options import EmbedOptions
from limbeck.recipes.run.probes import centre_crops
from limbeck.recipes.run.progress import progress

SECONDS_BETWEEN_FILES = 60.0
"""What a kill can cost."""

Kept = dict[str, tuple[str, Tensor]]  # by key: a mark of the image's content, and its vector


def open_gallery(
    encoder: Encoder,
    source: Source,
    shown: EmbedOptions,
    data: DataOptions,
    precision: Any,
    folder: Path,
) -> tuple[Gallery, str]:
    """All readable images of a source, and a digest of them; what the folder has is not embedded
    again. Raises UserError where none can be read."""
    of = {"model": encoder.facts.identity, "crop_ratio": shown.crop_ratio, "pool": shown.pool}
    of |= {"precision": precision, "max_image_pixels": data.max_image_pixels}
    marks = {source.key(index): _mark(source, index) for index in range(len(source))}
    file = folder / "gallery.safetensors"
    folder.mkdir(exist_ok=True)
    known = {key: own for key, own in _read(file, of).items() if marks.get(key) == own[0]}
    left = [index for index in range(len(source)) if source.key(index) not in known]
    (folder / "skipped.jsonl").unlink(missing_ok=True)
    skipped = SkippedLog(folder / "skipped.jsonl", len(source), 1.0)
    device, saved = next(encoder.parameters()).device, time.monotonic()
    todo = Subset(source, left)
    batches = centre_crops(encoder, todo, shown, data, device, skipped) if left else ()
    try:
        with progress(len(left), "images of the gallery") as advance:
            for batch in batches:
                said = embed(encoder, [batch], pool=shown.pool, precision=precision)
                rows = zip(said.keys, said.features, strict=True)
                known |= {key: (marks[key], row) for key, row in rows}
                advance(len(said))
                if time.monotonic() - saved > SECONDS_BETWEEN_FILES:
                    _write(file, of, known)
                    saved = time.monotonic()
    finally:
        if left and known:
            _write(file, of, known)
    if not known:
        raise UserError("Not one image of the gallery can be read; name another with --gallery.")
    keys = [key for key in marks if key in known]
    told = "\n".join(f"{key} {marks[key]}" for key in keys).encode(errors="surrogateescape")
    features = torch.stack([known[key][1] for key in keys])
    return Gallery(keys, features), blake2b(told, digest_size=8).hexdigest()


def _mark(source: Source, index: int) -> str:
    """What changes with an image's content."""
    try:
        if isinstance(source, FilesSource):
            status = os.stat(source.root / source.key(index))
            return f"{status.st_size} {status.st_mtime_ns}"
        return blake2b(source.read(index).data, digest_size=16).hexdigest()
    except (OSError, BadImage):
        return ""


def _write(file: Path, of: dict[str, Any], known: Kept) -> None:
    about = to_json({"of": of, "marks": {key: mark for key, (mark, _) in known.items()}})
    features = torch.stack([row for _, row in known.values()])
    write_bytes(file, save({"features": features}, metadata={"about": about}))


def _read(file: Path, of: dict[str, Any]) -> Kept:
    if not file.exists():
        return {}
    try:
        tensors, metadata = read_safetensors(file)
        about = parse_json(metadata["about"])
    except (UserError, KeyError):
        return {}  # damaged: it is made anew
    if about["of"] != of:
        return {}
    rows = zip(about["marks"].items(), tensors["features"], strict=True)
    return {key: (mark, row) for (key, mark), row in rows}
