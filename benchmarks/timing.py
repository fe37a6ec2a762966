"""Seconds and bytes: variants take turns in one run, medians, and the machine in one line."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

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
    """Processor or GPU, threads and versions, for the table's head."""
    chip = torch.cuda.get_device_name() if DEVICE.type == "cuda" else _processor()
    return (
        f"{chip}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
