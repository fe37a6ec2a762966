"""A finished student on disk: ``student.safetensors`` (timm's names) and ``student.json``.

Nothing of the training is needed to load it, and the JSON says the exact call with which timm
alone loads the weights, where timm has the model (it has no TinyMIM*, no second head on the class
token, no distillation token without a position, no BEiT with a bias of the keys).
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from pydantic import ConfigDict, Field, StringConstraints
from safetensors.torch import save
from torch import Tensor
from typing_extensions import TypedDict

from limbeck.documents import fit, read_json, write_json
from limbeck.errors import UserError
from limbeck.files import disk_errors, is_inside, printable, write_bytes
from limbeck.models.dense.detector import rebuild_detector
from limbeck.models.dense.headed import Headed
from limbeck.models.dense.segmenter import rebuild_segmenter
from limbeck.models.encoder import check_images
from limbeck.models.stated import check_size
from limbeck.models.tensor_files import check_finite, compare, read_safetensors
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.vit import build_encoder, wrap
from limbeck.models.windows import timm_kwargs

WEIGHTS_FILE = "student.safetensors"
RECORD_FILE = "student.json"
FINISHED_FILE = "finished.json"
"""Lies beside both once a run has nothing left to do."""
STUDENT_FILES = (WEIGHTS_FILE, RECORD_FILE)
FORMAT = "limbeck-student"
FORMAT_VERSION = 1
MASK_TOKEN = "mask_token"
"""The name under which a method keeps what stood for hidden patches, for ``Encoder.mask_token``."""

Count = Annotated[int, Field(ge=0, le=2**20)]
Finite = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Mean = Annotated[list[Finite], Field(min_length=3, max_length=3)]
Std = Annotated[list[Annotated[Finite, Field(gt=1e-9)]], Field(min_length=3, max_length=3)]
_Hash = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
_MORE = ConfigDict(extra="allow")

Savable = TimmEncoder | Headed
"""What a finished student may be."""
_REBUILD: dict[str, Callable[..., Headed]] = {
    "segmenter": rebuild_segmenter,
    "detector": rebuild_detector,
}
"""What makes again what is more than an encoder, by the kind of architecture."""


class Architecture(TypedDict):
    """Of what an encoder is built."""

    kind: str
    name: str
    kwargs: dict[str, Any]
    num_heads: list[Count]
    mean: Mean
    std: Std


class KeptFacts(TypedDict, total=False):
    """What is known of a keepsake, as far as it is read again."""

    __pydantic_config__ = _MORE  # type: ignore[misc]
    num_heads: Annotated[int, Field(ge=1, le=1024)]
    grid: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
    before_block: Count
    depth: Count
    unlike_mae: str


class _Kept(TypedDict):
    weight_hash: _Hash
    facts: KeptFacts


class _Data(TypedDict, total=False):
    __pydantic_config__ = _MORE  # type: ignore[misc]
    num_holdout: int


class _Origin(TypedDict, total=False):
    """What a record says of where a student comes from, as far as it is read again."""

    __pydantic_config__ = _MORE  # type: ignore[misc]
    source: str
    layout: str
    licence: str | None
    notes: list[str]
    classes: list[str]
    teacher: dict[str, Any] | None
    student: "_Origin"
    data: _Data
    kept: dict[str, _Kept]


class _Preprocessing(TypedDict):
    crop_ratio: Annotated[float, Field(gt=0, le=1)]


class _Record(_Origin):
    format: str
    format_version: int
    architecture: Architecture
    preprocessing: _Preprocessing
    weight_hash: _Hash


@dataclass(frozen=True)
class Keepsake:
    """Weights worth keeping beside an encoder, such as a decoder: tensors by published name.

    ``facts`` is plain JSON data that the tensors do not tell (head counts, say).
    """

    weights: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)


def save_student(
    encoder: Savable,
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
        "timm": timm_calls(encoder),
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
    """A finished encoder or classifier; see ``load_finished``.

    Raises UserError for a segmenter or a detector.
    """
    encoder = load_finished(path)
    if isinstance(encoder, Headed):
        raise UserError(
            f"{path} is a {encoder.facts.architecture['kind']}, and here an encoder or a "
            "classifier is needed. Name the run that it was started from."
        )
    return encoder


def load_finished(path: Path | str) -> Savable:
    """A finished student from its folder or from either of its files, in evaluation mode.

    ``facts.origin`` is what its record says. Raises UserError for a missing file, for anything else
    than a finished student, and for weights that do not match (the keys are listed).
    """
    folder, record = read_record(path)
    weights_file = folder / WEIGHTS_FILE
    weights, _ = read_safetensors(weights_file)
    origin = {"source": str(folder)} | {k: v for k, v in record.items() if k not in _NOT_ORIGIN}
    # Built without memory at first: whatever the record states, it must be of the weights' size.
    with torch.device("meta"):
        skeleton = rebuild(record["architecture"], origin)
    _check_keys(skeleton.model.state_dict(), weights, weights_file)
    check_size(skeleton, sum(value.numel() for value in weights.values()), str(folder))
    _check_hash(weights, record["weight_hash"], weights_file)
    check_finite(weights, weights_file)
    encoder = rebuild(record["architecture"], origin)
    encoder.model.load_state_dict(weights)
    if MASK_TOKEN in record.get("kept", {}):
        kept = _load_keepsake(folder, record, MASK_TOKEN).weights
        if MASK_TOKEN not in kept:
            raise UserError(
                f"{folder / MASK_TOKEN}.safetensors holds no '{MASK_TOKEN}'; keep the files of a "
                "run together."
            )
        encoder.mask_token = kept[MASK_TOKEN]
    return encoder.eval()


def rebuild(architecture: dict[str, Any], origin: dict[str, Any]) -> Savable:
    """The network of ``facts.architecture`` with fresh weights; raises UserError as its builder."""
    return _REBUILD.get(architecture["kind"], build_encoder)(architecture, origin)


def load(path: Path | str) -> Savable:
    """``load_finished`` for people: in evaluation mode it also refuses images that it can't mean.

    Those are whole numbers (uint8 pixels), NaN, and values that are far from 0..1, as of images
    that were normalised before. Raises UserError as ``load_finished``, and then for such images.
    """
    encoder = load_finished(path)
    encoder.register_forward_pre_hook(check_images, with_kwargs=True)
    return encoder


def load_kept(path: Path | str) -> dict[str, Keepsake]:
    """What a finished student's folder keeps beside it, by name; often nothing.

    ``path`` as for ``load_student``. Raises UserError for files that are missing or are not those
    of the record.
    """
    folder, record = read_record(path)
    return {name: _load_keepsake(folder, record, name) for name in record.get("kept", {})}


def _load_keepsake(folder: Path, record: dict[str, Any], name: str) -> Keepsake:
    said, file = record["kept"][name], folder / f"{name}.safetensors"
    if not file.is_file():
        raise UserError(describe_missing(folder, file.name))
    weights, _ = read_safetensors(file)
    _check_hash(weights, said["weight_hash"], file)
    check_finite(weights, file)
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


def read_record(path: Path | str) -> tuple[Path, dict[str, Any]]:
    """The folder and the record of a finished student; ``path`` as for ``load_student``.

    Raises UserError for anything else, and for entries that no record has.
    """
    folder = _folder_of(path)
    record_file, weights_file = folder / RECORD_FILE, folder / WEIGHTS_FILE
    for file in (record_file, weights_file):
        if not file.is_file():
            raise UserError(describe_missing(folder, file.name))
    known = read_json(record_file)
    if known.get("format") != FORMAT:
        raise UserError(f"{record_file} is not the record of a finished student.")
    version = known.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{record_file} has format version {version}, newer than this limbeck reads "
            f"({FORMAT_VERSION}); update limbeck."
        )
    record: dict[str, Any] = fit(known, _Record, str(record_file))
    for name in record.get("kept", {}):
        if not is_inside(name) or Path(name).name != name:
            raise UserError(
                f"{record_file} names '{printable(name)}' beside the student, which is no file of "
                "its folder; get the folder again."
            )
    return folder, record


def describe_missing(folder: Path, name: str) -> str:
    """The sentence for a student of which the file ``name`` is not there."""
    if (folder / FINISHED_FILE).is_file():
        return (
            f"The run in {folder} was finished, and its {name} is gone; put it back, or "
            f"{_anew(folder)}."
        )
    return (
        f"There is no {name} in {folder}, so it holds no finished student; pass the folder that a "
        "finished run wrote."
    )


def _check_hash(weights: dict[str, Tensor], expected: str, file: Path) -> None:
    if weight_hash(weights) != expected:
        raise UserError(
            f"{file} is not the file that {RECORD_FILE} describes (another weight hash); "
            f"keep the files of one run together, or {_anew(file.parent)}."
        )


def _anew(folder: Path) -> str:
    return f"run the command of {folder} again, which writes it anew"


def _folder_of(path: Path | str) -> Path:
    path = Path(path)
    return path.parent if path.name in (WEIGHTS_FILE, RECORD_FILE) else path


def timm_calls(encoder: Savable) -> dict[str, Any] | None:
    """How timm alone makes the same model; None where it has no such model."""
    facts = encoder.facts
    if isinstance(encoder, Headed) or facts.architecture["kind"] != "timm":
        return None
    name = facts.architecture["name"]
    kwargs = timm_kwargs(name, facts.architecture["kwargs"])
    arguments = "".join(f", {key}={value!r}" for key, value in kwargs.items())
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
        plain = wrap(model, architecture=facts.architecture, origin={})
    # timm has one head count for all blocks (of a stage); an adapted one is set afterwards.
    indices = [k for k, heads in enumerate(facts.num_heads) if heads != plain.facts.num_heads[k]]
    own = {index: encoder.blocks[index].attn for index in indices}
    attributes = (encoder.heads_name, "head_dim", "scale")
    return {
        "name": name,
        "kwargs": kwargs,
        "call": f"model = timm.create_model({name!r}{arguments})",
        "heads": {
            f"blocks.{index}.attn": {name: getattr(attn, name) for name in attributes}
            for index, attn in own.items()
        },
    }


def _check_keys(own: dict[str, Tensor], weights: dict[str, Tensor], file: Path) -> None:
    found = compare(own, weights)
    problems = [f"{kind}: {name}" for kind in ("missing", "unexpected") for name in found[kind]]
    if problems := [*problems, *found["misshapen"]]:
        raise UserError(
            f"{file} does not match the architecture in {RECORD_FILE} ({'; '.join(problems)}); "
            "keep the two files of one run together."
        )
