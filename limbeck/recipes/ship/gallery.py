"""The vectors of a gallery, kept in a file: an image is embedded again only where it changed."""

from __future__ import annotations

import os
from dataclasses import replace
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
from limbeck.recipes.run.progress import tracked

Kept = dict[str, tuple[str, Tensor]]  # by key: a mark of the image's content, and its vector


def open_gallery(
    encoder: Encoder, source: Source, shown: EmbedOptions, data: DataOptions, precision: Any,
    folder: Path,
) -> tuple[Gallery, str]:  # fmt: skip
    """All readable images of a source, and a digest of them; what the folder has is not embedded
    again, nor after Ctrl-C what was done before. Raises UserError where none can be read."""
    how = replace(shown, batch_size=1), precision, data.max_image_pixels, encoder.facts.identity
    of = blake2b(repr(how).encode(), digest_size=16).hexdigest()
    marks = {source.key(index): _mark(source, index) for index in range(len(source))}
    file = folder / "gallery.safetensors"
    known = {key: own for key, own in _read(file, of).items() if marks.get(key) == own[0]}
    left = [index for index in range(len(source)) if source.key(index) not in known]
    (folder / "skipped.jsonl").unlink(missing_ok=True)
    skipped = SkippedLog(folder / "skipped.jsonl", len(source), 1.0)
    device, todo = next(encoder.parameters()).device, Subset(source, left)
    batches = centre_crops(encoder, todo, shown, data, device, skipped)
    try:
        for batch in tracked(batches, len(left) / shown.batch_size, "gallery") if left else ():
            said = embed(encoder, [batch], pool=shown.pool, precision=precision)
            rows = zip(said.keys, said.features, strict=True)
            known |= {key: (marks[key], row) for key, row in rows}
    finally:
        if left and known:
            about = {"of": of, "marks": {key: mark for key, (mark, _) in known.items()}}
            features = torch.stack([row for _, row in known.values()])
            folder.mkdir(exist_ok=True)
            write_bytes(file, save({"features": features}, {"about": to_json(about)}))
    if not known:
        raise UserError("Not one image of the gallery can be read; name another with --gallery.")
    keys = [key for key in marks if key in known]
    digest = blake2b(to_json([(key, marks[key]) for key in keys]).encode(), digest_size=8)
    return Gallery(keys, torch.stack([known[key][1] for key in keys])), digest.hexdigest()


def _mark(source: Source, index: int) -> str:
    """What changes with an image's content."""
    try:
        if isinstance(source, FilesSource):
            status = os.stat(source.root / source.key(index))
            return f"{status.st_size} {status.st_mtime_ns}"
        return blake2b(source.read(index).data, digest_size=16).hexdigest()
    except (OSError, BadImage):
        return ""


def _read(file: Path, of: str) -> Kept:
    try:
        tensors, metadata = read_safetensors(file)
        about = parse_json(metadata["about"])
        rows = zip(about["marks"].items(), tensors["features"], strict=True)
        return {key: (mark, row) for (key, mark), row in rows} if about["of"] == of else {}
    except (UserError, OSError, KeyError, ValueError):
        return {}  # not there or damaged: it is made anew
