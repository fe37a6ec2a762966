"""What an encoder costs: its arithmetic, and its measured speed on this machine."""

import gc
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from limbeck import limits
from limbeck.evaluation.embed import evaluating
from limbeck.evaluation.latency import timed, torch_pass
from limbeck.models.encoder import Encoder
from limbeck.records import Tap

PARTS = ("patches", "projections", "products", "MLP", "convolutions", "neck and head", "other")
"""Of an encoder's MACs: its patch embedding; of attention the linear layers, and the products of
queries, keys and values; other are linear layers that merge or widen tokens, say."""
_HEADS = ("head", "head_dist", "neck", "aux")


def count_macs(encoder: Encoder) -> int:
    """MACs of the encoder for one image of its own size, attention products included.

    A MAC is one multiplication with its addition, in matrix products and convolutions; tables that
    say "FLOPs" often mean these.
    """
    return sum(macs_by_part(encoder).values())


@torch.no_grad()
def macs_by_part(encoder: Encoder, taps: tuple[Tap, ...] = ()) -> dict[str, int]:
    """The same by part, of those in ``PARTS``, and of what the ``taps`` ask for, such as logits."""
    # The plain attention kernel is made of matrix products, which every version of PyTorch counts.
    counter = FlopCounterMode(display=False)
    with evaluating(encoder), sdpa_kernel(SDPBackend.MATH), counter:
        encoder(_image_for(encoder), None, taps)
    found = counter.get_flop_counts()
    kinds = {name: type(module) for name, module in encoder.named_modules()}
    left = {name: dict(ops) for name, ops in found.items() if name != "Global"}
    macs = dict.fromkeys(PARTS, 0)
    # Innermost first: what is left of a module, less that of those in it, is its own.
    for name in sorted(left, key=lambda each: -each.count(".")):
        own = name.partition(".")[2]
        for op, count in left[name].items():
            macs[_part_of(own.split("."), kinds.get(own), str(op))] += count // 2
            for outer in _around(name, left):
                left[outer][op] -= count
    return macs


def _around(name: str, names: Collection[str]) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        if name in names:
            yield name


def _part_of(words: list[str], kind: type | None, op: str) -> str:
    """Of an operation in the module whose path has these words."""
    if any(word in _HEADS for word in words):
        return "neck and head"
    if "patch_embed" in words:
        return "patches"
    if "conv" in op:
        return "convolutions"
    if "attn" in words:
        return "projections" if kind is nn.Linear else "products"
    return "MLP" if "mlp" in words else "other"


def _image_for(encoder: Encoder) -> torch.Tensor:
    device = next(encoder.parameters()).device
    return torch.zeros(1, 3, *encoder.facts.img_size, device=device)


@torch.inference_mode()
def activation_bytes(encoder: Encoder, taps: tuple[Tap, ...] = ()) -> int:
    """The most bytes of tensors at one moment while PyTorch infers an image: with it, without
    weights."""
    with evaluating(encoder), _Live() as live:
        encoder(_image_for(encoder), None, taps)
    return live.most


class _Live(TorchDispatchMode):
    """Bytes of the tensors that operations have made and that still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for each in tree_leaves((args, kwargs)):  # what was there before, such as weights
            if isinstance(each, torch.Tensor):
                self.known[each.untyped_storage()] = None
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self._add(each.untyped_storage())
        self.most = max(self.most, self.now)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.known:
            self.known[storage] = None
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, num_bytes: int) -> None:
        self.now -= num_bytes


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure anew what ``peak_memory_mib`` tells."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    gc.collect()
    with suppress(OSError):  # Linux only: 5 resets the peak of this process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> float | None:
    """Most memory since the reset, in MiB: of tensors on a GPU, on the CPU of the whole process.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return limits.peak_memory_mib()


def measure_speed(
    encoder: Encoder,
    batch_size: int,
    num_runs: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Images per second: the median of ``num_runs`` forward passes, after two not counted.

    In fp32, where the encoder is, at its own image size.
    """
    run = torch_pass(encoder, batch_size)
    seconds = [timed(run, clock) for _ in range(2 + num_runs)]
    return batch_size / median(seconds[2:])


def costs_of(encoder: Encoder, speed_batch: int | None) -> dict[str, float]:
    """Its "parameters", its "macs" and, of batches of that size if so, its "images_per_second"."""
    values = {
        "parameters": float(sum(each.numel() for each in encoder.parameters())),
        "macs": float(count_macs(encoder)),
    }
    if speed_batch is not None:
        values["images_per_second"] = measure_speed(encoder, speed_batch)
    return values
