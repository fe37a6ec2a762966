"""timm's BEiT with a bias for queries, keys and values alike, as a plain ViT has it.

timm's own, as BEiT (arXiv 2106.08254), has none for the keys. A softmax does not feel one, but with
it a plain ViT's weights fit as they are.
"""

import warnings
from typing import Any

from timm.layers import resize_rel_pos_bias_table
from timm.models.beit import Beit
from torch import Tensor, nn

Grid = tuple[int, int]
TABLE = "relative_position_bias_table"


class QkvBiasBeit(Beit):
    """timm's BEiT whose packed projection has its bias; takes timm's arguments of a BEiT."""

    def __init__(self, **shape: Any) -> None:
        super().__init__(qkv_bias=False, **shape)
        for block in self.blocks:
            packed = block.attn.qkv
            block.attn.qkv = nn.Linear(packed.in_features, packed.out_features)
            nn.init.trunc_normal_(block.attn.qkv.weight, std=0.02)  # as timm's linear layers
            nn.init.zeros_(block.attn.qkv.bias)


def resize_tables(
    weights: dict[str, Tensor], own: dict[str, Tensor], old: Grid, new: Grid
) -> dict[str, Tensor]:
    """``weights`` with their tables of relative positions as large as in ``own``, timm's way.

    ``old`` and ``new`` are the patch grids (gh, gw); where the old one is no square, timm can't
    tell, and the tables stay as they are.
    """
    tables = {
        name: value
        for name, value in weights.items()
        if name.endswith(TABLE) and name in own and own[name].shape != value.shape
    }
    if old[0] != old[1]:
        return weights
    with warnings.catch_warnings(action="ignore"):  # of timm's way through memory
        resized = {
            name: resize_rel_pos_bias_table(value, new, own[name].shape)
            for name, value in tables.items()
        }
    return weights | resized
