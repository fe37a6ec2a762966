"""torch.export's file, which PyTorch alone loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.exports.formats import Precision, Run

if TYPE_CHECKING:
    from limbeck.exports.graph import Graph


def write(graph: Graph, file: Path, precision: Precision) -> dict[str, Any]:
    """Write the graph; there is nothing that its JSON should say besides."""
    import torch

    from limbeck.exports.graph import as_program

    torch.export.save(as_program(graph.cast(precision)), file)
    return {}


def load(file: Path, record: dict[str, Any], threads: int | None) -> Run:
    """The file in PyTorch, on so many threads."""
    import torch

    from limbeck.exports.silent import quiet

    with quiet():
        network = torch.export.load(file).module()
    return runner(network, threads)


def runner(network: Run, threads: int | None) -> Run:
    """A network of tensors as one of arrays."""
    import torch

    def run(images: Any) -> dict[str, Any]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            with torch.inference_mode():
                found = network(torch.from_numpy(images))
        finally:
            torch.set_num_threads(before)
        return {name: value.numpy() for name, value in found.items()}

    return run
