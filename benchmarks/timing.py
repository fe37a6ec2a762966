"""Seconds and bytes: variants take turns in one run, medians, and the machine in one line."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

from limbeck.engine.machine import DTYPES, choose, cpu_kind, describe, gpu_of, slowness

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Run = Callable[[], object]


def measure_seconds(run: Run) -> float:
    """Seconds of one call, to the end of what it started on the GPU."""
    _wait()
    started = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - started


def take_turns(runs: Mapping[str, Run], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, ``repeats`` times, in turn; one more round before that warms up."""
    rounds = [
        {name: measure_seconds(run) for name, run in runs.items()} for _ in range(repeats + 1)
    ]
    return {name: [seconds[name] for seconds in rounds[1:]] for name in runs}


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of slow / fast: within a round the machine is more alike than between."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def measure_peak_bytes(run: Run) -> int:
    """Most memory that one call holds at a time, beyond what was held before it.

    On the GPU torch's own counter; on the CPU the sum of torch's allocations as the profiler
    records them (what libraries take past torch's allocator is not seen).
    """
    if DEVICE.type == "cuda":
        _wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as recorded:
        run()
    events = recorded.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        held += change
        peak = max(peak, held)
    return peak


def describe_machine() -> str:
    """Machine, threads and versions, for the head of all tables."""
    return (
        f"{describe(DEVICE)}; {torch.get_num_threads()} threads, Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )


def kind_and_precision() -> str:
    """For the head of each table: the kind of processor, and the precision that auto is on it."""
    kind = gpu_of(DEVICE).name if DEVICE.type == "cuda" else cpu_kind()
    return f"{kind}; auto is {choose(DEVICE).precision}"


def runs_well(row: tuple[str, ...]) -> bool:
    """Whether a row of precisions and references, such as "bf16, teacher fp32", is worth its time.

    One in bf16 takes up to a hundred times as long on a CPU without the instructions.
    """
    words = " ".join(row).replace(",", "").split()
    return not any(slowness(DEVICE, word) for word in words if word in DTYPES)


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
