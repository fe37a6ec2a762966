"""A plain writer of the released layout of soft labels, for the tests of its reader."""

from pathlib import Path

import numpy as np

from limbeck.data.released_logits import record_type


def write_rank(
    folder: Path,
    rank: int,
    keys: list[str],
    view_seeds: np.ndarray,
    classes: np.ndarray,
    probs: np.ndarray,
) -> None:
    """The pair of files of one process; ``classes`` and ``probs`` (n, K), probs descending."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.empty(len(keys), record_type(classes.shape[1]))
    values["view_seeds"], values["classes"], values["probs"] = view_seeds, classes, probs
    (folder / f"rank{rank}-values.bin").write_bytes(values.tobytes())
    (folder / f"rank{rank}-keys.txt").write_text("".join(f"{key}\n" for key in keys))


def write_released(
    root: Path, keys: list[str], *, num_epochs: int, num_classes: int, num_kept: int, ranks: int = 1
) -> None:
    """Epochs of random records, of each key one, in another order in each epoch."""
    for epoch in range(num_epochs):
        rng = np.random.default_rng(epoch)
        order = rng.permutation(len(keys))
        dense = rng.dirichlet(np.full(num_classes, 0.3), len(keys))
        classes = np.argsort(-dense, axis=1)[:, :num_kept]
        probs = np.take_along_axis(dense, classes, axis=1)
        seeds = rng.integers(0, 2**31, len(keys))
        for rank in range(ranks):
            rows = order[rank::ranks]
            write_rank(
                root / f"logits_top{num_kept}_epoch{epoch}", rank, [keys[row] for row in rows],
                seeds[rows], classes[rows], probs[rows],
            )  # fmt: skip
