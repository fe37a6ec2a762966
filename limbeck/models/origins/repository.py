"""The files of a Hugging Face repository, on the hub or in a local folder, told apart by names."""

import json
import re
from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.models.origins.files import read_safetensors, read_weights
from limbeck.models.origins.hub import fetch
from limbeck.models.origins.layouts import Weights

_INDEX_FILE = "model.safetensors.index.json"
WEIGHT_FILES = ("model.safetensors", _INDEX_FILE, "pytorch_model.bin")


def read_hub_config(file: Path) -> dict[str, Any] | None:
    """The ``config.json`` of a model of Hugging Face or timm; None if the file is none."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_hub = isinstance(config, dict) and ("model_type" in config or "architecture" in config)
    return config if is_hub else None


def find_file(place: str | Path, names: tuple[str, ...], source: str) -> Path:
    """The first of ``names`` that a hub repository or a folder has; raises UserError without."""
    if not isinstance(place, Path):
        return fetch(place, names, source)
    for name in names:
        if (place / name).is_file():
            return place / name
    raise UserError(f"{place} has none of the files {', '.join(names)}; complete the folder.")


def read_all(file: Path, place: str | Path, source: str) -> Weights:
    """All tensors of a weights file, or of the shards that an index lists."""
    if file.name != _INDEX_FILE:
        # Not through read_weights for safetensors: it strips prefixes that the renaming knows.
        return read_safetensors(file)[0] if file.suffix == ".safetensors" else read_weights(file)[0]
    shards = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
    weights: Weights = {}
    for shard in shards:
        weights |= read_safetensors(find_file(place, (shard,), source))[0]
    return weights


def read_licence(place: str | Path, source: str) -> str | None:
    """The licence that a model card states in its head."""
    card = read_optional(place, "README.md", source) or ""
    found = re.search(r"\A---\n(?:.*\n)*?license: *(\S+)", card)
    return found.group(1) if found else None


def read_optional(place: str | Path, name: str, source: str) -> str | None:
    """The text of a file that need not be there."""
    try:
        return find_file(place, (name,), source).read_text(encoding="utf-8")
    except (UserError, OSError, UnicodeDecodeError):
        return None
