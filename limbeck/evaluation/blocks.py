"""What each block knows: kNN and linear probes on the tokens after every block.

The probes are those of ``evaluate`` (``probes.py``), on the mean patch token or the CLS token; the
images are shown once for all blocks.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.evaluation.embed import Embeddings
from limbeck.evaluation.layers import Observer, check_finite, check_offered
from limbeck.evaluation.probes import probe_scores
from limbeck.evaluation.scores import Score
from limbeck.models.encoder import Encoder
from limbeck.records import Batch, Features, Tap


class BlockPools(Observer):
    """Collects one vector per image after every block, from the first on, before any final norm.

    Raises UserError for an encoder without blocks, and for "cls" without a CLS token.
    """

    def __init__(self, encoder: Encoder, *, pool: Literal["mean", "cls"] = "mean") -> None:
        self.taps = tuple(Tap("tokens", block) for block in range(encoder.facts.depth))
        check_offered(encoder, self.taps, "Probing of blocks")
        if pool == "cls" and not encoder.facts.has_cls_token:
            raise UserError("This encoder has no CLS token; pool its patches with pool='mean'.")
        self.pool = pool
        self._parts: dict[Tap, list[Tensor]] = {tap: [] for tap in self.taps}

    def see(self, features: Features) -> None:
        """Pool the tokens of these images."""
        for tap in self.taps:
            if tap in features.taps:
                tokens = features.taps[tap].float()  # [B, N, D]
                patches = tokens[:, features.num_prefix_tokens :]
                pooled = tokens[:, 0] if self.pool == "cls" else patches.mean(1)
                self._parts[tap].append(pooled.cpu())

    def embeddings(self, seen: Sequence[Batch]) -> list[Embeddings]:
        """Embeddings by block; ``seen`` are the batches, of whose images only labels are read."""
        labels = [batch.labels.cpu() for batch in seen if batch.labels is not None]
        keys = tuple(key for batch in seen for key in batch.keys)
        found = []
        for tap in self.taps:
            features = torch.cat(self._parts[tap])
            check_finite(features, f"output of block {tap.block}")
            known = torch.cat(labels) if len(labels) == len(seen) else None
            found.append(Embeddings(features=features, labels=known, keys=keys))
        return found


def probe_blocks(
    train: Sequence[Embeddings],
    test: Sequence[Embeddings],
    *,
    k: int = 20,
    device: torch.device | str = "cpu",
) -> list[dict[str, Score]]:
    """Scores by name ("knn_top1", "linear_top1", see ``probe_scores``) of each block.

    Raises UserError for unlabelled images.
    """
    return [
        probe_scores(of_train, of_test, num_labels=(), k=k, device=device)
        for of_train, of_test in zip(train, test, strict=True)
    ]
