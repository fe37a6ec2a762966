"""How far and how evenly the heads of a network look: attention distance and entropy.

As MAE-Lite measures them (arXiv 2205.14443): of the attention between patches alone. The CLS (or
any prefix) token is dropped as query and as key, and the softmax taken again over the patches, so
that heads which send much to CLS are compared by what they do with the rest. That is not the map
that the network itself computes.

Differs from the released code: the distance is in true pixels; there a patch counts 14 pixels,
whatever its size (``cell_px`` 14 gives its numbers).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.evaluation.embed import show
from limbeck.evaluation.layers import Observer, check_finite, check_offered
from limbeck.models.encoder import Encoder
from limbeck.records import Features, Tap

CHUNK_ELEMENTS = 2**18  # of a map at a time: they stay in the cache, which halves the time
LOG_OFFSET = 1e-6  # of the released code: a one-hot map has -1e-6 nats instead of 0 * log 0


@dataclass(frozen=True)
class Attention:
    """Per block (None where it attends within windows) and head, mean over images and queries.

    ``distance`` in pixels of the encoder's own image; ``entropy`` in nats. ``uniform_distance`` and
    ``uniform_entropy`` per block are those of a head that looks everywhere alike.
    """

    distance: list[list[float] | None]
    entropy: list[list[float] | None]
    uniform_distance: list[float | None]
    uniform_entropy: list[float | None]
    num_images: int

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


def patch_distances(
    query_grid: tuple[int, int], key_grid: tuple[int, int], img_size: tuple[float, float]
) -> Tensor:
    """Distances (Lq, Lk) between the centres of the cells of two grids over one image.

    float64, in the unit of ``img_size`` (height, width); cells in rows.
    """
    queries, keys = (
        torch.cartesian_prod(*(_centres(n, side) for n, side in zip(grid, img_size, strict=True)))
        for grid in (query_grid, key_grid)
    )
    return (queries[:, None] - keys[None]).norm(dim=-1)


def _centres(count: int, side: float) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (side / count)


def attention_statistics(scores: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and entropy (B, nh), float64, of pre-softmax ``scores`` (B, nh, Lq, Lk) of patches.

    With a = softmax(scores) over the keys, both are means over the queries: of sum_k a_qk
    ``distances`` (Lq, Lk), and of -sum_k a_qk ln(a_qk + 1e-6), in nats.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    distances = distances.to(scores.device, dtype)
    rows = max(1, CHUNK_ELEMENTS // (scores.shape[0] * scores.shape[-1]))
    of_heads = []
    for head in scores.unbind(1):
        of_rows = []
        for part, distance in zip(head.split(rows, 1), distances.split(rows), strict=True):
            a = part.to(dtype).softmax(-1)  # [B, rows, Lk]
            entropy = (a + LOG_OFFSET).log_().mul_(a).sum(-1).double().neg()
            of_rows.append(torch.stack((a.mul_(distance).sum(-1).double(), entropy)))
        of_heads.append(torch.cat(of_rows, dim=-1).mean(-1))  # [2, B]
    distance, entropy = torch.stack(of_heads, dim=-1)  # [B, nh] each
    return distance, entropy


class AttentionObserver(Observer):
    """Sums distance and entropy of every head over images, in blocks where every token sees all.

    ``cell_px``: pixels that a patch of the last layer counts per side, instead of its true side.
    Raises UserError for an encoder without "scores".
    """

    def __init__(self, encoder: Encoder, *, cell_px: float | None = None) -> None:
        facts = encoder.facts
        assert facts.global_blocks is not None
        self.taps = tuple(Tap("scores", block) for block in facts.global_blocks)
        check_offered(encoder, [Tap("scores")], "Attention distance")
        self.depth = facts.depth
        self.num_images = 0
        self._distances = {tap: _block_distances(encoder, tap.block, cell_px) for tap in self.taps}
        self._sums: dict[Tap, Tensor] = {}

    def see(self, features: Features) -> None:
        """Add these images."""
        for tap in self.taps:
            if tap not in features.taps:
                continue
            prefix = features.num_prefix_tokens
            scores = features.taps[tap][:, :, prefix:, prefix:]
            means = torch.stack(attention_statistics(scores, self._distances[tap]))  # [2, B, nh]
            self._sums[tap] = self._sums.get(tap, 0) + means.sum(1).cpu()
            if tap == self.taps[0]:
                self.num_images += means.shape[1]

    def result(self) -> Attention:
        """The means so far."""
        found: dict[int, tuple[list[float], list[float]]] = {}
        for tap, sums in self._sums.items():
            check_finite(sums, f"attention of block {tap.block}")
            found[tap.block] = tuple((sums / self.num_images).tolist())
        of_block = {tap.block: distances for tap, distances in self._distances.items()}
        uniform = [
            None if block not in of_block else _uniform(of_block[block])
            for block in range(self.depth)
        ]
        return Attention(
            distance=[found[b][0] if b in found else None for b in range(self.depth)],
            entropy=[found[b][1] if b in found else None for b in range(self.depth)],
            uniform_distance=[each and each[0] for each in uniform],
            uniform_entropy=[each and each[1] for each in uniform],
            num_images=self.num_images,
        )


def has_attention_map(encoder: Encoder) -> bool:
    """Whether a block has every token see all, so that there is a map of the whole image."""
    return bool(encoder.facts.global_blocks) and "scores" in encoder.offered_taps()


def attention_maps(encoder: Encoder, images: Tensor) -> Tensor:
    """Where the last block in which every token sees all looks, (B, gh, gw) on the CPU.

    Of the network's own softmax the mean of the heads: of the CLS token's query, or of all patches'
    where there is none. 1 where it looks most. For an encoder that ``has_attention_map``.
    """
    facts = encoder.facts
    assert facts.global_blocks
    tap = Tap("scores", facts.global_blocks[-1])
    said = show(encoder, images, (tap,))
    prefix = said.num_prefix_tokens
    queries = slice(0, 1) if facts.has_cls_token else slice(prefix, None)
    looks = said.taps[tap].float().softmax(-1)[:, :, queries, prefix:].mean((1, 2))  # [B, keys]
    grid = facts.grid_of(facts.input_strides[tap.block])
    return (looks / looks.amax(1, keepdim=True)).unflatten(1, grid).cpu()


def _block_distances(encoder: Encoder, block: int, cell_px: float | None) -> Tensor:
    facts = encoder.facts
    # Queries may be pooled on the way into the block, keys not.
    query_grid, key_grid = (
        facts.grid_of(strides[block]) for strides in (facts.block_strides, facts.input_strides)
    )
    scale = 1.0 if cell_px is None else cell_px / facts.patch_size
    return patch_distances(query_grid, key_grid, facts.img_size) * scale


def _uniform(distances: Tensor) -> tuple[float, float]:
    return float(distances.mean()), math.log(distances.shape[1])
