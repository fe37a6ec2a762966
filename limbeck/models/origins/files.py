"""Weights files, read without running code: how they are packed, and the network's tensors."""

import argparse
import pickle
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limbeck.errors import UserError
from limbeck.files import utf8_name
from limbeck.models.origins.companions import Network, find_network
from limbeck.models.origins.layouts import Weights, name_list

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")

# Where training programs put the weights, in the order in which they are preferred.
_CONTAINERS = ("model", "state_dict", "model_state", "module", "teacher", "student", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "encoder.", "backbone.", "student.", "teacher.")


@dataclass(frozen=True)
class FileInfo:
    """How a weights file was packed.

    ``containers`` the keys that lead to the weights, ``prefix`` what all names began with,
    ``other_entries`` what else the file holds, ``metadata`` safetensors' own strings (of a file of
    torch those under "metadata", as ``limbeck convert`` writes them). ``network`` is what was taken
    out of the tensors, with what was left out.
    """

    file_format: str
    containers: tuple[str, ...] = ()
    prefix: str = ""
    other_entries: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    network: Network = field(default_factory=lambda: Network({}))

    @property
    def notes(self) -> list[str]:
        """What a person should know of the packing."""
        # Weights that would have served as well: the choice among them must not be silent.
        rivals = [name for name in self.other_entries if name in _CONTAINERS]
        if not rivals:
            return list(self.network.notes)
        text = f"Weights of '{self.containers[0]}'; the file also has {', '.join(rivals)}."
        return [text, *self.network.notes]


def left_out_notes(left: dict[str, list[str]]) -> list[str]:
    """Sentences that name what of a file was not loaded."""
    return [f"Left out {what} ({len(names)} tensors)." for what, names in left.items()]


def read_weights(path: Path | str) -> tuple[Weights, FileInfo]:
    """The network's tensors in a file by name, without running code that the file may hold.

    safetensors, or torch's format with tensors and plain data; the published files' argparse
    Namespace is allowed. Containers, shared prefixes and what pre-training saved beside the network
    are removed. Raises UserError for a file that is unreadable, holds other objects, or holds no
    weights.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        weights, metadata = read_safetensors(path)
        return take_network(weights, FileInfo("safetensors", metadata=metadata))
    content = read_pickle(path)
    if isinstance(content, dict) and "limbeck_checkpoint" in content:
        raise UserError(
            f"{path} is the checkpoint of a run that has not finished; run the same command again "
            "to finish it, then pass the run's folder."
        )
    weights, containers, others = unpack(content, path)
    info = FileInfo("torch", containers, other_entries=others, metadata=read_metadata(content))
    return take_network(weights, info)


def take_network(weights: Weights, info: FileInfo) -> tuple[Weights, FileInfo]:
    """The network's tensors among all of a file, and ``info`` with what was removed.

    Raises UserError where others lie beside it that are not known.
    """
    weights, prefix = strip_prefixes(weights)
    network = find_network(weights, info.other_entries)
    return network.weights, replace(info, prefix=prefix, network=network)


def read_metadata(content: Any) -> dict[str, str]:
    """The strings under "metadata" in a file of torch."""
    metadata = content.get("metadata") if isinstance(content, dict) else None
    if not isinstance(metadata, dict):
        return {}
    return {str(name): text for name, text in metadata.items() if isinstance(text, str)}


def read_safetensors(path: Path) -> tuple[Weights, dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises UserError if it can't be read."""
    try:
        with utf8_name(path) as name, safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"Can't read {path} as safetensors: {error}; it is damaged or no such file, get it "
            "again."
        ) from error


def read_pickle(path: Path) -> Any:
    """The content of a file of torch, weights only. Raises UserError if it is anything else."""
    try:
        # The files of MAE and TinyMIM carry their command line under "args".
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = str(error).partition("Unsupported global: GLOBAL ")[2].split(" ")[0]
        # What torch writes today is a zip; anything else without a culprit is no file of torch.
        if not culprit and not zipfile.is_zipfile(path):
            raise UserError(_no_torch_file(path)) from error
        raise UserError(
            f"{path} holds Python objects beside tensors{f' ({culprit})' if culprit else ''}, "
            "which could run code, so it is not read. If you trust it, convert it once: python -c "
            '"import torch; from safetensors.torch import save_file; '
            f"save_file(torch.load('{path}', weights_only=False)['model'], "
            f"'{path.with_suffix('.safetensors')}')\" (or another key than 'model')."
        ) from error
    except OSError as error:
        raise UserError(
            f"Can't read {path}: {error.strerror or error}; make it readable, or get it again."
        ) from error
    except Exception as error:  # bytes that are no pickle can make the unpickler raise anything
        raise UserError(_no_torch_file(path)) from error


def _no_torch_file(path: Path) -> str:
    return f"Can't read {path} as a file of torch; it is damaged or no weights file, get it again."


def unpack(content: Any, path: Path) -> tuple[Weights, tuple[str, ...], tuple[str, ...]]:
    """The dictionary of tensors in a file's content, the way to it, and what lies beside.

    Raises UserError where there are no tensors, with the keys that there are.
    """
    containers: list[str] = []
    others: list[str] = []
    while isinstance(content, dict):
        weights = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        inner = [key for key in _CONTAINERS if isinstance(content.get(key), dict)]
        # A tensor of no axes among the entries (a best score) is no weight.
        if inner and all(value.ndim == 0 for value in weights.values()):
            containers.append(inner[0])
            others += [str(key) for key in content if key != inner[0]]
            content = content[inner[0]]
            continue
        if weights:
            others += [str(key) for key in content if key not in weights]
            return weights, tuple(containers), tuple(others)
        break
    found = name_list(map(str, content)) if isinstance(content, dict) else type(content).__name__
    raise UserError(
        f"{path} holds no tensors by name, also not under {', '.join(_CONTAINERS)}; it holds: "
        f"{found or 'nothing'}."
    )


def strip_prefixes(weights: Weights) -> tuple[Weights, str]:
    """The weights without the beginnings that all names share (``module.``), and these."""
    removed = ""
    while True:
        shared = [p for p in _PREFIXES if all(name.startswith(p) for name in weights)]
        if not weights or not shared:
            return weights, removed
        removed += shared[0]
        weights = {name.removeprefix(shared[0]): value for name, value in weights.items()}
