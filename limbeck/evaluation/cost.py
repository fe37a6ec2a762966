"""What an encoder costs: its arithmetic, and its measured speed on this machine."""

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from limbeck import limits
from limbeck.evaluation.embed import evaluating
from limbeck.evaluation.latency import timed, torch_pass
from limbeck.models.encoder import Encoder


@torch.no_grad()
def count_macs(encoder: Encoder) -> int:
    """MACs of the encoder for one image of its own size, attention products included.

    A MAC is one multiplication with its addition, in matrix products and convolutions; tables that
    say "FLOPs" often mean these.
    """
    device = next(encoder.parameters()).device
    image = torch.zeros(1, 3, *encoder.facts.img_size, device=device)
    # The plain attention kernel is made of matrix products, which every version of PyTorch counts.
    counter = FlopCounterMode(display=False)
    with evaluating(encoder), sdpa_kernel(SDPBackend.MATH), counter:
        encoder(image)
    return counter.get_total_flops() // 2


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
