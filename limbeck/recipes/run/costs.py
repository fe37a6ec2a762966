"""What a run costs, added up over its attempts, in a file of its folder."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
from typing_extensions import TypedDict

from limbeck.documents import read_json
from limbeck.errors import RunError, UserError

if TYPE_CHECKING:
    import torch

COST_FILE = "cost.json"
KEEP_EVERY = 10.0  # seconds: what a kill -9 makes forget

Amount = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]


class Cost(TypedDict, total=False):
    """The content of the file."""

    seconds: Amount
    memory_mib: Amount


def read_measured(file: Path, kind: Any) -> Any:
    """What was measured before, as ``kind``, or an empty one; raises UserError with the way on."""
    if not file.exists():
        return {}
    try:
        return read_json(file, kind)
    except UserError as error:
        raise UserError(
            f"{error} Restore it from a copy, or delete it: what is in it is then measured anew."
        ) from error


def measured(
    folder: Path, device: torch.device | None, work: Callable[[], Any]
) -> dict[str, float]:
    """Do the work of a run and add what it costs to what earlier attempts did: "seconds", and
    "images_per_second" of its steps and the "memory_mib" of a device where they are known.

    The seconds are kept on the way, so that those before a kill count, too.
    """
    from limbeck.documents import write_json
    from limbeck.evaluation.cost import peak_memory_mib, reset_peak_memory

    file = folder / COST_FILE
    was_finished = (folder / "finished.json").exists()
    before: Cost = read_measured(file, Cost)
    started = time.monotonic()
    if device is not None:
        reset_peak_memory(device)

    def keep(peak: float | None = None) -> None:
        is_new = not (was_finished and file.exists())  # a run that is replaced loses its file
        if is_new and folder.is_dir():
            earlier: Cost = before if file.exists() else {}
            if not earlier:
                before.clear()
            cost: Cost = {"seconds": earlier.get("seconds", 0.0) + time.monotonic() - started}
            peaks = [each for each in (peak, earlier.get("memory_mib")) if each is not None]
            if peaks:
                cost["memory_mib"] = max(peaks)
            write_json(file, cost)

    def keep_if_begun() -> None:
        if (folder / "config.json").exists():  # without it the folder is nobody's
            keep()

    try:
        with repeated(keep_if_begun, KEEP_EVERY):
            work()
    finally:
        keep(None if device is None else peak_memory_mib(device))
    return {**read_measured(file, Cost), **images_per_second(folder)}


@contextmanager
def repeated(work: Callable[[], None], seconds: float) -> Iterator[None]:
    """Do the work every so many seconds, in a thread of its own, and never after the block."""
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(seconds):
            with suppress(RunError):  # of a full disk the run itself will tell
                work()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class _Speed(TypedDict, total=False):
    images_per_second: float | None


def images_per_second(folder: Path) -> dict[str, float]:
    """The speed of a run's steps, as its log has it: the harmonic mean of its records."""
    from limbeck.engine.log import read_metrics

    records = read_metrics(folder / "metrics.jsonl", _Speed)
    speeds = [each.get("images_per_second") for each in records]
    known = [speed for speed in speeds if speed and math.isfinite(speed)]
    return {"images_per_second": len(known) / sum(1 / v for v in known)} if known else {}
