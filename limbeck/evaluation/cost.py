"""What an encoder costs: parameters, arithmetic, and its measured speed on this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from limbeck.evaluation.embed import evaluating
from limbeck.models.encoder import Encoder


@dataclass(frozen=True)
class Speed:
    """``images_per_second`` at a ``batch_size``: median of ``num_runs`` forward passes.

    ``peak_mib``: largest GPU memory in use during them, weights included; None on a CPU, where
    PyTorch does not count it.
    """

    batch_size: int
    images_per_second: float
    num_runs: int
    peak_mib: float | None


@dataclass(frozen=True)
class Cost:
    """``num_parameters`` (classifier and fixed tables included) and ``macs`` of one image.

    A MAC is one multiplication with its addition, in matrix products and convolutions; tables that
    say "FLOPs" often mean these. ``num_threads`` were used by the ``device`` "cpu".
    """

    num_parameters: int
    macs: int
    speeds: tuple[Speed, ...]
    device: str
    num_threads: int


def measure_cost(
    encoder: Encoder,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    num_runs: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> Cost:
    """Count and time the encoder in fp32, where it is, at its own image size."""
    device = next(encoder.parameters()).device
    return Cost(
        num_parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        macs=count_macs(encoder),
        speeds=tuple(measure_speed(encoder, size, num_runs, clock) for size in batch_sizes),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        num_threads=torch.get_num_threads(),
    )


@torch.no_grad()
def count_macs(encoder: Encoder) -> int:
    """MACs of the encoder for one image of its own size, attention products included."""
    device = next(encoder.parameters()).device
    image = torch.zeros(1, 3, *encoder.facts.img_size, device=device)
    # The plain attention kernel is made of matrix products, which every version of PyTorch counts.
    counter = FlopCounterMode(display=False)
    with evaluating(encoder), sdpa_kernel(SDPBackend.MATH), counter:
        encoder(image)
    return counter.get_total_flops() // 2


@torch.no_grad()
def measure_speed(
    encoder: Encoder,
    batch_size: int,
    num_runs: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Time forward passes of ``batch_size`` images, after two that are not counted."""
    device = next(encoder.parameters()).device
    is_gpu = device.type == "cuda"
    images = torch.rand(batch_size, 3, *encoder.facts.img_size, device=device)
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    with evaluating(encoder):
        for _ in range(2 + num_runs):
            if is_gpu:
                torch.cuda.synchronize(device)
            start = clock()
            encoder(images)
            if is_gpu:
                torch.cuda.synchronize(device)
            seconds.append(clock() - start)
    return Speed(
        batch_size=batch_size,
        images_per_second=batch_size / median(seconds[2:]),
        num_runs=num_runs,
        peak_mib=torch.cuda.max_memory_allocated(device) / 2**20 if is_gpu else None,
    )
