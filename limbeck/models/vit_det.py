"""A plain ViT for detection: most blocks attend within windows, and all have relative positions.

ViTDet, arXiv 2203.16527; its decomposed relative positions are MViTv2's (arXiv 2112.01526). There
is no class token and no final norm. The position table keeps the grid that it was pre-trained on,
and is interpolated in every forward pass, so that it learns as it is.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

AXIS_TABLES = ("rel_pos_h", "rel_pos_w")
WINDOW = 14
_MULTIPLE = 8  # of a head's channels, which fused kernels want


class GridAttention(Attention):
    """timm's attention of patches in rows and columns, with a bias by the distance along each axis.

    ``window`` tokens per side attend to each other; 0: all of the ``grid`` do. The tables
    (2 S - 1, hd), with S the rows or columns that attend, are shared by the heads; they start at 0.
    """

    grid: tuple[int, int]
    window: int

    def settle(self, grid: tuple[int, int], window: int) -> None:
        """Say where it is, once, and give it tables."""
        self.grid, self.window = grid, window
        for name, side in zip(AXIS_TABLES, self.sides, strict=True):
            table = torch.zeros(2 * side - 1, self.head_dim)
            self.register_parameter(name, nn.Parameter(table))

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of tokens that attend to each other."""
        return (self.window, self.window) if self.window else self.grid

    def forward(self, x: Tensor, **unused: Any) -> Tensor:
        """What the attention adds to tokens (B, L, D); beyond the grid windows see zeros."""
        x = into_windows(x, self.grid, self.window) if self.window else x
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # [B, nh, N, hd] each
        q, k = self._with_distances(q, k)
        if self.fused_attn:
            width = v.shape[-1]
            v = F.pad(v, (0, q.shape[-1] - width))
            x = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :width]
        else:
            x = (q @ k.mT).softmax(dim=-1) @ v
        x = self.proj(x.transpose(1, 2).flatten(2))
        return from_windows(x, self.grid, self.window) if self.window else x

    def distance_bias(self, q: Tensor) -> Tensor:
        """What is added to the scores (B, nh, N, N) of queries (B, nh, N, hd)."""
        by_row, by_column = self._distances(q)  # [B, nh, N, S] each
        bias = by_row.unsqueeze(-1) + by_column.unsqueeze(-2)
        return bias.flatten(-2)

    def _distances(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """What queries, as they are before the scale, say of every row and of every column."""
        placed = q.unflatten(2, self.sides)  # [B, nh, y, x, hd]
        rows, columns = (
            relative_rows(getattr(self, name), side).to(q.dtype)
            for name, side in zip(AXIS_TABLES, self.sides, strict=True)
        )
        by_row = torch.einsum("bnyxd,ykd->bnyxk", placed, rows).flatten(2, 3)
        return by_row, torch.einsum("bnyxd,xkd->bnyxk", placed, columns).flatten(2, 3)

    def _with_distances(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys whose product is the scores with the bias, which is held nowhere.

        Behind a query stands what it says of every row and column, behind a key which it is in.
        """
        spare = -(q.shape[-1] + sum(self.sides)) % _MULTIPLE
        longer = torch.cat((q * self.scale, *self._distances(q)), dim=-1)
        height, width = self.sides
        y, x = (torch.eye(side, dtype=k.dtype, device=k.device) for side in (height, width))
        places = torch.cat((y.repeat_interleave(width, 0), x.repeat(height, 1)), dim=1)
        keys = torch.cat((k, places.expand(*k.shape[:2], -1, -1)), dim=-1)
        return F.pad(longer, (0, spare)), F.pad(keys, (0, spare))


class VitDet(VisionTransformer):
    """timm's ViT with ``GridAttention``; takes timm's arguments of its shape, ``num_heads`` of each
    block too, and

    ``global_blocks``, whose attention is over all; ``window``, of the others; ``pos_grid``, the
    grid of the position table (1, 1 + gh * gw, D), whose first row is a class token's and unused.
    Raises ValueError for blocks that there aren't.
    """

    def __init__(
        self,
        *,
        global_blocks: Sequence[int],
        window: int,
        pos_grid: Sequence[int],
        num_heads: int | Sequence[int],
        **shape: Any,
    ) -> None:
        heads = [num_heads] * shape["depth"] if isinstance(num_heads, int) else list(num_heads)
        shape |= {"num_heads": heads[0]}
        given = {"class_token": False, "final_norm": False, "global_pool": "", "num_classes": 0}
        super().__init__(**shape | given, pos_embed="none")
        depth = len(self.blocks)
        if window < 1 or len(pos_grid) != 2 or not set(global_blocks) <= set(range(depth)):
            raise ValueError(f"there are no such windows, positions or blocks among {depth}")
        self.global_blocks = tuple(global_blocks)
        self.pos_grid = (pos_grid[0], pos_grid[1])
        table = torch.zeros(1, 1 + pos_grid[0] * pos_grid[1], self.embed_dim)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        for index, (block, count) in enumerate(zip(self.blocks, heads, strict=True)):
            block.attn.__class__ = GridAttention  # as it is: nothing is drawn anew
            if self.embed_dim % count:
                raise ValueError(f"a width of {self.embed_dim} does not divide into {count} heads")
            block.attn.num_heads, block.attn.head_dim = count, self.embed_dim // count
            block.attn.scale = block.attn.head_dim**-0.5
            is_global = index in self.global_blocks
            block.attn.settle(self.patch_embed.grid_size, 0 if is_global else window)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patches (B, L, D) with their positions."""
        table = self.pos_embed[:, 1:]
        if self.pos_grid != self.patch_embed.grid_size:
            placed = table.mT.unflatten(2, self.pos_grid)  # [1, D, gh, gw]
            placed = F.interpolate(placed, self.patch_embed.grid_size, mode="bicubic")
            table = placed.flatten(2).mT
        return x + table.to(x.dtype)


def relative_rows(table: Tensor, size: int) -> Tensor:
    """The rows (size, size, hd) of a table (2 S - 1, hd) for each query and each key of an axis.

    Distances are query less key. One for another size is resized, linearly.
    """
    wanted = 2 * size - 1
    if len(table) != wanted:
        table = resize_rows(table, wanted)
    places = torch.arange(size, device=table.device)
    return table[places[:, None] - places[None] + size - 1]


def resize_rows(table: Tensor, count: int) -> Tensor:
    """A table (n, hd) with ``count`` rows, linear between its own."""
    return F.interpolate(table.T[None], count, mode="linear")[0].T


def into_windows(x: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Tokens (B, L, D) of a grid in windows (B * n, window * window, D), filled up with zeros."""
    down, right = (-side % window for side in grid)
    x = F.pad(x.unflatten(1, grid), (0, 0, 0, right, 0, down))
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))  # [B, wy, y, wx, x, D]
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def from_windows(x: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """The reverse: tokens (B, L, D) of the grid alone."""
    counts = [-(-side // window) for side in grid]
    x = x.unflatten(0, (-1, *counts)).unflatten(3, (window, window)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)[:, : grid[0], : grid[1]].flatten(1, 2)


def published_globals(depth: int) -> list[int]:
    """Which blocks of a depth attend to all: the last of each quarter."""
    return sorted({max(round(depth * share / 4), 1) - 1 for share in range(1, 5)})
