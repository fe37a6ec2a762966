"""What a run costs, added up over its attempts, in a file of its folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.documents import read_json

if TYPE_CHECKING:
    import torch

COST_FILE = "cost.json"


def measured(
    folder: Path, device: torch.device | None, work: Callable[[], Any]
) -> dict[str, float]:
    """Do the work of a run and add what it costs to what earlier attempts did: "seconds", and
    "images_per_second" of its steps and the "memory_mib" of a device where they are known.
    """
    from limbeck.documents import write_json
    from limbeck.evaluation.cost import peak_memory_mib, reset_peak_memory

    file = folder / COST_FILE
    was_finished = (folder / "finished.json").exists()
    before = read_json(file) if file.exists() else {}
    started = time.monotonic()
    if device is not None:
        reset_peak_memory(device)
    try:
        work()
    finally:
        is_new = not (was_finished and file.exists())  # a run that is replaced loses its file
        if is_new and folder.is_dir():
            earlier = before if file.exists() else {}
            peak = None if device is None else peak_memory_mib(device)
            cost = {"seconds": earlier.get("seconds", 0.0) + time.monotonic() - started}
            if peak is not None:
                cost["memory_mib"] = max(peak, earlier.get("memory_mib", 0.0))
            write_json(file, cost)
    cost = read_json(file) if file.exists() else {}
    return cost | images_per_second(folder)


def images_per_second(folder: Path) -> dict[str, float]:
    """The speed of a run's steps, as its log has it: the harmonic mean of its records."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines]
    speeds = [each["images_per_second"] for each in records if each.get("images_per_second")]
    return {"images_per_second": len(speeds) / sum(1 / v for v in speeds)} if speeds else {}
