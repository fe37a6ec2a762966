"""A finished student on disk: ``student.safetensors`` (timm's names) and ``student.json``.

Nothing of the training is needed to load it, and the JSON says the exact call with which timm
alone loads the weights, where timm has the model (it has no TinyMIM*, no second head on the class
token, no distillation token without a position, no BEiT with a bias of the keys).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from limbeck.documents import read_json, write_json
from limbeck.errors import UserError
from limbeck.files import disk_errors, write_bytes
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.vit import build_encoder, wrap
from limbeck.models.windows import timm_kwargs

WEIGHTS_FILE = "student.safetensors"
RECORD_FILE = "student.json"
STUDENT_FILES = (WEIGHTS_FILE, RECORD_FILE)
FORMAT = "limbeck-student"
FORMAT_VERSION = 1
MASK_TOKEN = "mask_token"
"""The name under which a method keeps what stood for hidden patches, for ``Encoder.mask_token``."""


@dataclass(frozen=True)
class Keepsake:
    """Weights worth keeping beside an encoder, such as a decoder: tensors by published name.

    ``facts`` is plain JSON data that the tensors do not tell (head counts, say).
    """

    weights: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)


def save_student(
    encoder: TimmEncoder,
    folder: Path | str,
    record: dict[str, Any],
    *,
    interpolation: str = "bicubic",
    crop_ratio: float = 0.875,
    kept: Mapping[str, Keepsake] | None = None,
) -> None:
    """Write the student into ``folder`` (made if missing), each file whole or not at all.

    ``record`` is plain data on where the student comes from (teacher, licence, data fingerprint,
    versions); it is kept under its own keys. ``interpolation`` and ``crop_ratio`` (centre crop as
    a part of the resized image) are the preprocessing that the student is evaluated with. What is
    ``kept`` is written beside it as NAME.safetensors. Raises RunError where the folder can't be
    written.
    """
    facts = encoder.facts
    weights = _on_cpu(encoder.model.state_dict())
    own: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": facts.architecture,
        "preprocessing": {
            "img_size": list(facts.img_size),
            "mean": list(facts.mean),
            "std": list(facts.std),
            "interpolation": interpolation,
            "crop_ratio": crop_ratio,
        },
        "timm": _timm_calls(encoder),
        "weight_hash": weight_hash(weights),
    }
    taken = own.keys() & record.keys()
    if taken:
        raise ValueError(f"The record may not set {', '.join(sorted(taken))}.")
    beside = {name: _on_cpu(keepsake.weights) for name, keepsake in (kept or {}).items()}
    if kept:
        own["kept"] = {
            name: {"weight_hash": weight_hash(beside[name]), "facts": keepsake.facts}
            for name, keepsake in kept.items()
        }
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / WEIGHTS_FILE, save(weights, metadata={"format": "pt"}))
    for name, tensors in beside.items():
        write_bytes(folder / f"{name}.safetensors", save(tensors, metadata={"format": "pt"}))
    # The record last: where it exists, the weights are complete.
    write_json(folder / RECORD_FILE, own | record)


def load_student(path: Path | str) -> TimmEncoder:
    """A finished student from its folder or from either of its files, in evaluation mode.

    ``facts.origin`` is what its record says. Raises UserError for a missing file, for anything else
    than a finished student, and for weights that do not match (the keys are listed).
    """
    folder, record = _read_record(path)
    weights_file = folder / WEIGHTS_FILE
    weights = _load_tensors(weights_file)
    origin = {"source": str(folder)} | {k: v for k, v in record.items() if k not in _NOT_ORIGIN}
    encoder = build_encoder(record["architecture"], origin)
    _check_keys(encoder.model.state_dict(), weights, weights_file)
    _check_hash(weights, record["weight_hash"], weights_file)
    encoder.model.load_state_dict(weights)
    if MASK_TOKEN in record.get("kept", {}):
        encoder.mask_token = _load_keepsake(folder, record, MASK_TOKEN).weights[MASK_TOKEN]
    return encoder.eval()


def load_kept(path: Path | str) -> dict[str, Keepsake]:
    """What a finished student's folder keeps beside it, by name; often nothing.

    ``path`` as for ``load_student``. Raises UserError for files that are missing or are not those
    of the record.
    """
    folder, record = _read_record(path)
    return {name: _load_keepsake(folder, record, name) for name in record.get("kept", {})}


def _load_keepsake(folder: Path, record: dict[str, Any], name: str) -> Keepsake:
    said, file = record["kept"][name], folder / f"{name}.safetensors"
    if not file.is_file():
        raise UserError(f"There is no {file.name} in {folder}; keep the files of a run together.")
    weights = _load_tensors(file)
    _check_hash(weights, said["weight_hash"], file)
    return Keepsake(weights, said["facts"])


def is_finished_student(path: Path | str) -> bool:
    """Whether ``path`` is the folder, or either file, of a finished student."""
    folder = _folder_of(path)
    if not (folder / RECORD_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        return False
    try:
        return read_json(folder / RECORD_FILE).get("format") == FORMAT
    except UserError:
        return False


def weight_hash(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes; the order of the dictionary does not matter."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


_NOT_ORIGIN = frozenset(
    ("format", "format_version", "architecture", "preprocessing", "timm", "kept")
)


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}


def _read_record(path: Path | str) -> tuple[Path, dict[str, Any]]:
    folder = _folder_of(path)
    record_file, weights_file = folder / RECORD_FILE, folder / WEIGHTS_FILE
    for file in (record_file, weights_file):
        if not file.is_file():
            raise UserError(
                f"There is no {file.name} in {folder}, so it holds no finished student; pass the "
                "folder that a finished run wrote."
            )
    record = read_json(record_file)
    if record.get("format") != FORMAT:
        raise UserError(f"{record_file} is not the record of a finished student.")
    if record["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{record_file} has format version {record['format_version']}, newer than this "
            f"limbeck reads ({FORMAT_VERSION}); update limbeck."
        )
    return folder, record


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} can't be read as safetensors: {error}.") from error


def _check_hash(weights: dict[str, Tensor], expected: str, file: Path) -> None:
    if weight_hash(weights) != expected:
        raise UserError(
            f"{file} is not the file that {RECORD_FILE} describes (another weight hash); "
            "keep the two files of one run together."
        )


def _folder_of(path: Path | str) -> Path:
    path = Path(path)
    return path.parent if path.name in (WEIGHTS_FILE, RECORD_FILE) else path


def _timm_calls(encoder: TimmEncoder) -> dict[str, Any] | None:
    """How timm alone makes the same model; None where it has no such model."""
    facts = encoder.facts
    if facts.architecture["kind"] != "timm":
        return None
    name = facts.architecture["name"]
    kwargs = timm_kwargs(name, facts.architecture["kwargs"])
    arguments = "".join(f", {key}={value!r}" for key, value in kwargs.items())
    with torch.device("meta"):
        plain = wrap(
            timm.create_model(name, **kwargs),
            architecture=facts.architecture,
            origin={},
            mean=facts.mean,
            std=facts.std,
        )
    # timm has one head count for all blocks (of a stage); an adapted one is set afterwards.
    adapted = [
        f"attn = model.blocks[{index}].attn; attn.{encoder.heads_name} = {num_heads}; "
        f"attn.head_dim = attn.proj.in_features // {num_heads}; attn.scale = attn.head_dim ** -0.5"
        for index, num_heads in enumerate(facts.num_heads)
        if num_heads != plain.facts.num_heads[index]
    ]
    return {
        "name": name,
        "kwargs": kwargs,
        "call": f"model = timm.create_model({name!r}{arguments})",
        "then": adapted,
    }


def _check_keys(own: dict[str, Tensor], weights: dict[str, Tensor], file: Path) -> None:
    problems = [f"missing: {name}" for name in sorted(own.keys() - weights.keys())]
    problems += [f"unexpected: {name}" for name in sorted(weights.keys() - own.keys())]
    problems += [
        f"{name} is {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if own[name].shape != weights[name].shape
    ]
    if problems:
        raise UserError(
            f"{file} does not match the architecture in {RECORD_FILE} ({'; '.join(problems)}); "
            "keep the two files of one run together."
        )
