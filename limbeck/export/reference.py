"""The network as it was trained, in PyTorch and fp32: what every export is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def load(
    file: Path, record: Mapping[str, Any], threads: int | None
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The finished student of a folder, on so many threads; it takes what the export takes."""
    from limbeck.export.graph import Graph
    from limbeck.export.torch import runner
    from limbeck.models.finished import load_finished

    return runner(Graph(load_finished(file), record["input"]["kind"]), threads)
