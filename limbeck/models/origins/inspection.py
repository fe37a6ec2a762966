"""What a file or folder of weights is, told without using it: for people, and for ``inspect``."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.encoder import Encoder
from limbeck.models.finished import (
    FINISHED_FILE,
    RECORD_FILE,
    WEIGHTS_FILE,
    describe_missing,
    is_finished_student,
    read_record,
)
from limbeck.models.licences import Ancestor, ancestors
from limbeck.models.origins.architecture import read_shape, to_architecture
from limbeck.models.origins.checkpoint import heads_text
from limbeck.models.origins.decoder import decoder_in, describe_decoder, load_keepsakes
from limbeck.models.origins.detectors import read_detector
from limbeck.models.origins.files import (
    SUFFIXES,
    FileInfo,
    check_told,
    read_metadata,
    strip_prefixes,
    take_network,
    unpack,
)
from limbeck.models.origins.hierarchical import Staged, read_staged
from limbeck.models.origins.layouts import Layout, Weights, find_heads, recognise, split_left_out
from limbeck.models.origins.load import load_encoder
from limbeck.models.origins.names import check_path
from limbeck.models.origins.pickled import read_pickle
from limbeck.models.origins.repository import HubConfig, read_hub_config
from limbeck.models.origins.segmenters import read_segmenter
from limbeck.models.tensor_files import (
    as_float32,
    check_plain,
    compare,
    find_not_finite,
    read_safetensors,
)
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.vit import build_encoder


@dataclass(frozen=True)
class Inspection:
    """What ``inspect_file`` found; None and empty where it is not known.

    ``lineage``: of a network that is known, the weights from elsewhere that went into it.
    ``kind`` is "finished student", "Hugging Face folder", "timm folder", "limbeck checkpoint",
    "weights file" or "file without weights"; ``layout`` and ``description`` say which published
    layout. ``shapes`` has every tensor, ``dtypes`` how many tensors have which type. ``num_heads``
    is per block, ``heads_known_from`` says how it is known. ``decoder`` says what decoder there is
    and what it predicts, '' without one. ``unmatched`` has every tensor that
    keeps the file from being loaded; it is loadable only if this is empty.
    """

    path: Path
    kind: str
    layout: str
    description: str
    num_tensors: int = 0
    num_parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    embed_dim: int | None = None
    depth: int | None = None
    patch_size: int | None = None
    img_size: tuple[int, int] | None = None
    num_prefix_tokens: int | None = None
    num_classes: int | None = None
    num_heads: tuple[int, ...] | None = None
    heads_known_from: str = ""
    lineage: tuple[Ancestor, ...] = ()
    decoder: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def inspect_file(path: Path | str) -> Inspection:
    """Describe a weights file, a checkpoint, a finished student, or a hub folder.

    A readable file never fails: what is not understood is described as unknown, with its names.
    Raises UserError for a path that does not exist (with the nearest name), for a file that can't
    be read without running code, and for a folder without weights.
    """
    path = Path(path)
    check_path(path)
    if is_finished_student(path):
        return _inspect_loadable(path, "finished student")
    if path.is_dir():
        config = read_hub_config(path / "config.json")
        if (path / RECORD_FILE).is_file() and (path / WEIGHTS_FILE).is_file():
            read_record(path)  # says what is wrong with it
        if config is None and (path / "fingerprint.json").is_file():
            raise UserError(_describe_unfinished(path))
        if config is None:
            files = [str(f) for f in sorted(path.iterdir()) if f.suffix in SUFFIXES]
            raise UserError(
                f"{path} is a folder without a finished student or a config.json; inspect one of "
                f"its files{': ' + ', '.join(files) if files else ''}."
            )
        is_timm = "architecture" in config
        return _inspect_loadable(path, "timm folder" if is_timm else "Hugging Face folder", config)
    if path.suffix == ".safetensors":
        weights, metadata = read_safetensors(path)
        return _inspect_weights(path, weights, FileInfo("safetensors", metadata=metadata))
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is no weights file ({', '.join(SUFFIXES)}).")
    content = read_pickle(path)
    if isinstance(content, dict) and "limbeck_checkpoint" in content:
        return _inspect_checkpoint(path, content)
    try:
        weights, containers, others = unpack(content, path)
    except UserError as error:
        return Inspection(
            path, "file without weights", "unknown", "a file of torch", notes=(str(error),)
        )
    check_plain(weights, path)
    info = FileInfo("torch", containers, other_entries=others, metadata=read_metadata(content))
    return _inspect_weights(path, weights, info)


def _describe_unfinished(run_dir: Path) -> str:
    if (run_dir / FINISHED_FILE).is_file():
        names = (RECORD_FILE, WEIGHTS_FILE)
        return describe_missing(run_dir, next(n for n in names if not (run_dir / n).is_file()))
    stages = sorted(file.parent.name for file in run_dir.glob("*/fingerprint.json"))
    if stages:
        return (
            f"The chain in {run_dir} is unfinished; inspect one of its stages: {', '.join(stages)}."
        )
    if not (run_dir / "checkpoint.pt").is_file():
        return f"The run in {run_dir} is unfinished and has no checkpoint yet."
    return f"The run in {run_dir} is unfinished; inspect {run_dir / 'checkpoint.pt'}."


def _count(tensors: Weights) -> dict[str, Any]:
    kinds = Counter(str(value.dtype).removeprefix("torch.") for value in tensors.values())
    return {
        "num_tensors": len(tensors),
        "num_parameters": sum(value.numel() for value in tensors.values()),
        "dtypes": dict(kinds),
        "shapes": {name: tuple(value.shape) for name, value in tensors.items()},
    }


def _inspect_weights(path: Path, weights: Weights, info: FileInfo) -> Inspection:
    weights, prefix = strip_prefixes(weights)
    counts = _count(weights)
    problems: tuple[str, ...] = ()
    try:
        weights, info = take_network(weights, info)
    except UserError as error:
        problems = (str(error),)
    metadata: dict[str, Any] = {"format": info.file_format, **info.metadata}
    if info.containers:
        metadata["weights are under"] = ".".join(info.containers)
    if prefix:
        metadata["prefix removed"] = prefix
    if info.other_entries:
        metadata["other entries"] = ", ".join(info.other_entries)
    found = {"path": path, "kind": "weights file", "metadata": metadata, **counts}
    try:
        weights = as_float32(weights, path)
        check_told(info.metadata, path)
    except UserError as error:
        return Inspection(
            layout="unknown", description="tensors that are not read", notes=problems,
            unmatched=(str(error),), **found,
        )  # fmt: skip
    described = _describe(path, weights, info, problems, found)
    wrong = find_not_finite(weights)
    return replace(described, unmatched=(*described.unmatched, wrong)) if wrong else described


def _describe(
    path: Path, weights: Weights, info: FileInfo, problems: tuple[str, ...], found: dict[str, Any]
) -> Inspection:
    named, notes = weights, list[str]()
    try:
        for kind, read in (("segmenter", read_segmenter), ("detector", read_detector)):
            found |= {"layout": kind, "description": f"a {kind} that is not understood"}
            headed = read(weights, info, path)
            if headed is None:
                continue
            origin = headed.facts.origin
            found |= {
                "layout": origin["layout"],
                "description": headed.facts.architecture["name"],
            }
            known_from = "the width of its tables of relative positions"
            found |= _facts_of(headed) | {"heads_known_from": known_from}
            return Inspection(notes=tuple(origin["notes"]), **found)
        found |= {"layout": "hierarchical", "description": "a Hiera or Swin that is not understood"}
        staged = read_staged(weights)
        if staged is not None:
            return _inspect_staged(staged, info, problems, found)
        layout: Layout | None = None
        with suppress(UserError):
            layout = recognise(weights, info.network.program)
        if layout is None:
            found |= {"layout": "unknown", "description": "no layout that is known"}
            return Inspection(notes=problems, unmatched=tuple(sorted(weights)), **found)
        found |= {"layout": layout.name, "description": layout.description}
        found["decoder"] = describe_decoder(decoder_in(weights, info), str(path))
        named, left = split_left_out(layout, layout.convert(weights))
        notes = [*_left_out(info.network.left_out | left), *problems, *info.notes]
        shape = read_shape(named)
        found |= {
            "embed_dim": shape.embed_dim,
            "depth": shape.depth,
            "patch_size": shape.patch_size,
            "img_size": shape.img_size,
            "num_prefix_tokens": shape.has_cls_token + shape.has_dist_token + shape.num_reg_tokens,
            "num_classes": shape.num_classes,
        }
        try:
            told = str(shape.num_heads or info.metadata.get("num_heads", ""))
            num_heads, known_from = find_heads(layout, shape.embed_dim, shape.depth, None, told)
            found |= {"num_heads": num_heads, "heads_known_from": known_from}
        except UserError as error:
            num_heads = (1,) * shape.depth  # shapes do not depend on it
            notes.append(str(error))
        skeleton = _skeleton(to_architecture(shape, num_heads, img_size=shape.img_size))
    except UserError as error:
        return Inspection(notes=(*notes, str(error)), unmatched=tuple(sorted(named)), **found)
    return Inspection(notes=tuple(notes), unmatched=_unmatched(skeleton, named), **found)


def _skeleton(architecture: dict[str, Any]) -> TimmEncoder:
    with torch.device("meta"):
        return build_encoder(architecture | {"mean": [0.5] * 3, "std": [0.5] * 3})


def _unmatched(skeleton: TimmEncoder, weights: Weights) -> tuple[str, ...]:
    problems = compare(skeleton.model.state_dict(), weights).items()
    return tuple(f"{kind}: {name}" for kind, names in problems for name in names)


def _facts_of(encoder: Encoder) -> dict[str, Any]:
    names = ("embed_dim", "depth", "patch_size", "img_size", "num_prefix_tokens", "num_classes",
             "num_heads")  # fmt: skip
    return {name: getattr(encoder.facts, name) for name in names}


def _left_out(left: dict[str, list[str]]) -> list[str]:
    return [f"{what} ({len(names)} tensors) would be left out" for what, names in left.items()]


def _inspect_staged(
    staged: Staged, info: FileInfo, problems: tuple[str, ...], found: dict[str, Any]
) -> Inspection:
    left = _left_out(info.network.left_out | staged.left_out)
    notes = (*left, *problems, *info.notes, *staged.notes)
    found |= {"layout": staged.layout, "description": staged.description}
    try:
        encoder = _skeleton(staged.architecture)
    except UserError as error:
        return Inspection(
            notes=(*notes, str(error)), unmatched=tuple(sorted(staged.weights)), **found
        )
    return Inspection(
        heads_known_from=staged.heads_known_from,
        notes=notes,
        unmatched=_unmatched(encoder, staged.weights),
        **_facts_of(encoder),
        **found,
    )


def _inspect_loadable(path: Path, kind: str, config: HubConfig | None = None) -> Inspection:
    """Describe what ``load_encoder`` makes of it, or why it can't."""
    name = str((config or {}).get("architecture") or (config or {}).get("model_type") or kind)
    try:
        encoder = load_encoder(path)
    except UserError as error:
        return Inspection(path, kind, name, f"{kind} that can't be loaded", notes=(str(error),))
    facts, origin = encoder.facts, dict(encoder.facts.origin)
    notes = tuple(origin.pop("notes", ()))
    kept = load_keepsakes(str(path))
    notes += tuple(
        f"{name}.safetensors beside it has {len(keepsake.weights)} tensors"
        for name, keepsake in (kept if is_finished_student(path) else {}).items()
    )
    return Inspection(
        path=path,
        kind=kind,
        layout=str(origin.pop("layout", kind)),
        description=f"{facts.architecture['name']}, {heads_text(facts.num_heads)} heads",
        heads_known_from="stated in its record or config",
        decoder=describe_decoder(kept, str(path)),
        metadata=origin,
        lineage=tuple(ancestors(encoder.facts.origin)),
        notes=notes,
        **_facts_of(encoder),
        **_count(encoder.model.state_dict()),
    )


def _inspect_checkpoint(path: Path, content: dict[str, Any]) -> Inspection:
    module = content.get("module")
    own = module.items() if isinstance(module, dict) else ()
    tensors = {str(k): v for k, v in own if isinstance(v, Tensor) and v.layout == torch.strided}
    plain = (int, float, str, bool)
    return Inspection(
        path=path,
        kind="limbeck checkpoint",
        layout="limbeck checkpoint",
        description="the state of a run that is under way; its finished student is another file",
        metadata={key: value for key, value in content.items() if isinstance(value, plain)}
        | {"entries": ", ".join(map(str, content))},
        **_count(tensors),
    )
