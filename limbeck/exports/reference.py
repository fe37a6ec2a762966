"""The network as it was trained, in PyTorch and fp32: what every export is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.exports.formats import Run


def load(file: Path, record: dict[str, Any], threads: int | None) -> Run:
    """The finished student of a folder, on so many threads; it takes what the export takes."""
    from limbeck.exports.graph import Graph
    from limbeck.exports.torch import runner
    from limbeck.models.finished import load_finished

    return runner(Graph(load_finished(file), record["input"]["kind"]), threads)
