"""Weights files, read without running code: how they are packed, and the network's tensors."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.origins.companions import Network, find_network
from limbeck.models.origins.layouts import Weights, name_list
from limbeck.models.origins.pickled import CONTAINERS, read_pickle
from limbeck.models.tensor_files import as_float32, check_plain, read_safetensors

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")

_MAX_CONTAINERS = 8  # one within the other; a dictionary may hold itself
_MAX_HEADS = 1024
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
        rivals = [name for name in self.other_entries if name in CONTAINERS]
        if not rivals or not self.containers:
            return list(self.network.notes)
        text = f"Weights of '{self.containers[0]}'; the file also has {', '.join(rivals)}."
        return [text, *self.network.notes]


def left_out_notes(left: dict[str, list[str]]) -> list[str]:
    """Sentences that name what of a file was not loaded."""
    return [f"Left out {what} ({len(names)} tensors)." for what, names in left.items()]


def read_weights(path: Path | str) -> tuple[Weights, FileInfo]:
    """The network's tensors in a file by name (float32), without running code that it may hold.

    safetensors, or torch's format with tensors and plain data; the published files' argparse
    Namespace is allowed. Containers, shared prefixes and what pre-training saved beside the network
    are removed. Raises UserError for a file that is unreadable, holds other objects, or holds no
    weights.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        weights, metadata = read_safetensors(path)
        info = FileInfo("safetensors", metadata=check_told(metadata, path))
        weights, info = take_network(weights, info)
        return as_float32(weights, path), info
    content = read_pickle(path)
    if isinstance(content, dict) and "limbeck_checkpoint" in content:
        raise UserError(
            f"{path} is the checkpoint of a run that has not finished; run the same command again "
            "to finish it, then pass the run's folder."
        )
    weights, containers, others = unpack(content, path)
    check_plain(weights, path)
    metadata = check_told(read_metadata(content), path)
    info = FileInfo("torch", containers, other_entries=others, metadata=metadata)
    weights, info = take_network(weights, info)
    return as_float32(weights, path), info


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


def check_told(metadata: dict[str, str], path: Path) -> dict[str, str]:
    """The metadata as it is; raises UserError for head counts in it that are none."""
    for name in ("num_heads", "decoder_num_heads"):
        told = metadata.get(name, "1")
        if not (told.isdecimal() and len(told) < 5 and 0 < int(told) <= _MAX_HEADS):
            raise UserError(
                f"{path}: its metadata say {name} = '{told[:40]}', which is no head count up to "
                f"{_MAX_HEADS}; write the file again."
            )
    return metadata


def unpack(content: Any, path: Path) -> tuple[Weights, tuple[str, ...], tuple[str, ...]]:
    """The dictionary of tensors in a file's content, the way to it, and what lies beside.

    Raises UserError where there are no tensors, with the keys that there are.
    """
    containers: list[str] = []
    others: list[str] = []
    while isinstance(content, dict) and len(containers) < _MAX_CONTAINERS:
        weights = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        inner = [key for key in CONTAINERS if isinstance(content.get(key), dict)]
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
        f"{path} holds no tensors by name, also not under {', '.join(CONTAINERS)}; it holds: "
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
