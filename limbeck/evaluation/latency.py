"""Latency on this machine: forward passes in turns with each other.

The machine's own speed drifts (heat, other work). Passes of what is compared alternate, so that a
drift hits all, and the ratio of their medians is what holds.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch

from limbeck.engine.machine import cpu_name
from limbeck.evaluation.embed import evaluating
from limbeck.limits import num_cores
from limbeck.models.encoder import Encoder

PASSES = 3  # of a turn
Pass = Callable[[], object]
"""One forward pass of a batch, done when it returns."""


def torch_pass(encoder: Encoder, batch_size: int) -> Pass:
    """A pass of the encoder in fp32 on its device, at its own image size."""
    device = next(encoder.parameters()).device
    images = torch.rand(batch_size, 3, *encoder.facts.img_size, device=device)

    @torch.inference_mode()
    def run() -> None:
        with evaluating(encoder):
            encoder(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def interleaved(
    works: Sequence[Pass], num_turns: int = 15, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median seconds of each over turns, after one turn of each that is not counted.

    A turn is the fastest of three passes, which other work on the machine disturbs least.
    """
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(1 + num_turns):
        for work, taken in zip(works, seconds, strict=True):
            taken.append(min(timed(work, clock) for _ in range(PASSES)))
    return [median(taken[1:]) for taken in seconds]


def timed(work: Pass, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one pass."""
    start = clock()
    work()
    return clock() - start


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """PyTorch on so many threads inside the block; None leaves their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_machine() -> str:
    """The processor's name and how many of its cores this process has: what a latency is of."""
    return f"{cpu_name()}, {num_cores()} cores"


def busy_note() -> str:
    """A sentence where other work keeps all cores busy, so that latencies are too long; or ''."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load <= cores + 1:  # measuring itself is 1
        return ""
    return (
        f"The machine is busy (load {load:.1f} on {cores} cores), so that latencies are longer "
        "than they would be; measure again when it is idle."
    )
