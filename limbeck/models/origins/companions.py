"""What pre-training saved beside the network: its teacher, adapters, a momentum copy, spare blocks.

Checkpoints of MAE-Lite and its distillation (arXiv 2205.14443, arXiv 2404.12210) and of MoCo-v3
(arXiv 2104.02057), as their released code writes them. What is no part of the network is left out
by name, never by a pattern that could hit the network's own tensors.
"""

from dataclasses import dataclass, field

import torch

from limbeck.errors import UserError
from limbeck.models.origins.layouts import MAE_LITE, MOCO_V3, Weights, depth_of, name_list

DECOUPLED_BLOCK = 8
"""D2-MAE decodes what enters this block (from 0), through the final norm (arXiv 2404.12210)."""

SPARE_BLOCK = "a last block of queries and keys alone, for its distillation"


@dataclass(frozen=True)
class Wrapper:
    """How a training program names the network among others.

    ``network`` begins its names; ``companions`` maps the beginnings of all others to what they are.
    """

    program: str
    network: str
    companions: dict[str, str]


WRAPPERS = (
    Wrapper(
        MAE_LITE,
        "model.",
        {
            "tch_model.": "the teacher that was saved with it",
            "attn_adapter.": "the head mixer of its distillation",
        },
    ),
    Wrapper(
        MOCO_V3,
        "base_encoder.",
        {"momentum_encoder.": "the momentum encoder", "predictor.": "the predictor"},
    ),
)

# The entries beside the weights that only this program writes.
_PROGRAM_ENTRIES = {MAE_LITE: {"start_epoch", "scheduler", "best_top1"}}


@dataclass(frozen=True)
class Network:
    """The network of a file, without its companions.

    ``program`` wrote it, '' where nothing tells. ``left_out`` names what was left out, by what it
    is. ``is_decoupled``: it is D2-MAE's, so that norm and decoder were fitted to an earlier block.
    """

    weights: Weights
    program: str = ""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_decoupled: bool = False


def find_network(weights: Weights, other_entries: tuple[str, ...] = ()) -> Network:
    """Take the network out of a file's tensors (shared prefixes are removed already).

    ``other_entries``: what else the file holds. Raises UserError with the names of tensors that are
    neither the network's nor a known companion's.
    """
    network, left, program = _unwrap(weights)
    entries = set(other_entries)
    if not program:
        told = (name for name, telling in _PROGRAM_ENTRIES.items() if telling <= entries)
        program = next(told, MAE_LITE if _has_small_decoder(network) else "")
    spare = _spare_block(network)
    if not spare:
        return Network(network, program, left)
    left = left | {SPARE_BLOCK: spare}
    network = {name: value for name, value in network.items() if name not in spare}
    notes = ()
    if "norm.weight" in network and "norm.bias" in network:
        network["norm.weight"] = torch.ones_like(network["norm.weight"])
        network["norm.bias"] = torch.zeros_like(network["norm.bias"])
        notes = (
            f"The final norm starts fresh: that of the file was fitted to what enters block "
            f"{DECOUPLED_BLOCK}, not to the last block (D2-MAE, arXiv 2404.12210).",
        )
    return Network(network, program, left, notes, is_decoupled=True)


def _unwrap(weights: Weights) -> tuple[Weights, dict[str, list[str]], str]:
    for wrapper in WRAPPERS:
        starts = tuple(wrapper.companions)
        has_network = any(name.startswith(wrapper.network) for name in weights)
        is_alone = all(name.startswith(wrapper.network) for name in weights)
        has_others = any(name.startswith(starts) for name in weights)
        if has_network and (has_others or is_alone):
            return (*_split(weights, wrapper), wrapper.program)
    return weights, {}, ""


def _split(weights: Weights, wrapper: Wrapper) -> tuple[Weights, dict[str, list[str]]]:
    network: Weights = {}
    companions: dict[str, Weights] = {}
    unknown = []
    for name, value in weights.items():
        start = next((start for start in wrapper.companions if name.startswith(start)), None)
        if name.startswith(wrapper.network):
            network[name.removeprefix(wrapper.network)] = value
        elif start is not None:
            companions.setdefault(start, {})[name.removeprefix(start)] = value
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"A checkpoint of {wrapper.program} with {len(unknown)} tensors that are neither the "
            f"network's ('{wrapper.network}') nor known to lie beside it: {name_list(unknown)}; "
            "remove them from the file."
        )
    left = {
        f"{wrapper.companions[start]}{_size(tensors)}": [start + name for name in tensors]
        for start, tensors in companions.items()
    }
    return network, left


def _size(weights: Weights) -> str:
    """What is worth saying of a companion as big as a network."""
    depth, patches = depth_of(weights), weights.get("patch_embed.proj.weight")
    if not depth or patches is None:
        return ""
    values = sum(value.numel() for value in weights.values())
    return f", {depth} blocks of width {patches.shape[0]} with {values:,} values"


def _spare_block(weights: Weights) -> list[str]:
    """The names of a last block that has nothing but norm1 and qkv."""
    last = f"blocks.{depth_of(weights) - 1}."
    names = [name for name in weights if name.startswith(last)]
    parts = {name.removeprefix(last).rpartition(".")[0] for name in names}
    is_spare = depth_of(weights) > 1 and parts == {"norm1", "attn.qkv"}
    return names if is_spare else []


def _has_small_decoder(weights: Weights) -> bool:
    """MAE-Lite's rule for the decoder: one block of half the width; MAE's own are 8 of 512."""
    embed = weights.get("decoder_embed.weight")
    if embed is None or embed.ndim != 2:
        return False
    is_one_block = not any(name.startswith("decoder_blocks.1.") for name in weights)
    return is_one_block and embed.shape[0] * 2 == embed.shape[1]
