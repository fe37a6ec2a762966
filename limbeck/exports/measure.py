"""What a file costs where it runs: seconds and memory, in a process of its own.

The process loads the runtime and nothing else, so that its memory is what a device would need.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.documents import parse_json, to_json
from limbeck.errors import RunError
from limbeck.limits import num_cores, peak_memory_mib

BUDGET = 3.0
"""Seconds of passes in each case; at least three are measured."""


def measure(
    name: str, file: Path, record: dict[str, Any], batch_sizes: Sequence[int], num_runs: int
) -> dict[str, Any]:
    """Seconds of a pass and memory of a file of the format ``name``, or of the "reference".

    By case, such as "batch 1, 1 thread": "median_ms", "p95_ms", "runs" and "peak_mib", the most
    memory of the process so far, None where the system does not tell. ``record``: of the export's
    JSON "input" and what its format needs to load it. Raises RunError where the process fails.
    """
    asked = {
        "name": name, "file": str(file), "record": record, "batch_sizes": list(batch_sizes),
        "num_runs": num_runs,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "limbeck.exports.measure"],
        input=to_json(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise RunError(f"The file can't be measured in a process of its own: {last}")
    found: dict[str, Any] = parse_json(done.stdout.splitlines()[-1])
    return found


def measured(asked: dict[str, Any]) -> dict[str, Any]:
    """The same in this process."""
    import numpy as np

    from limbeck.exports.formats import module_of

    load, record = module_of(asked["name"]).load, asked["record"]
    size, kind = record["input"]["size"], record["input"]["kind"]
    threads = sorted({1, num_cores()})
    found = {}
    for batch_size in asked["batch_sizes"]:
        shape = (batch_size, *size, 3) if kind == "uint8" else (batch_size, 3, *size)
        images = np.random.default_rng(0).random(shape, np.float32)
        images = (255 * images).astype(np.uint8) if kind == "uint8" else images
        for count in threads:
            run = load(Path(asked["file"]), record, count)
            taken = passes(lambda run=run, images=images: run(images), asked["num_runs"])  # type: ignore[misc]
            case = f"batch {batch_size}, {count} thread{'s' if count > 1 else ''}"
            found[case] = {
                "median_ms": 1e3 * float(np.median(taken)),
                "p95_ms": 1e3 * float(np.percentile(taken, 95)),
                "runs": len(taken),
                "peak_mib": peak_memory_mib(),
            }
    return found


def passes(work: Any, num_runs: int, clock: Any = time.perf_counter) -> list[float]:
    """Seconds of each pass, after one that is not counted."""
    work()
    taken: list[float] = []
    start = clock()
    while len(taken) < num_runs and (len(taken) < 3 or clock() - start < BUDGET):
        begun = clock()
        work()
        taken.append(clock() - begun)
    return taken


if __name__ == "__main__":
    sys.stdout.write(to_json(measured(parse_json(sys.stdin.read())), indent=None) + "\n")
