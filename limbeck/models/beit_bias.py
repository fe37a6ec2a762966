"""timm's BEiT with a bias for queries, keys and values alike, as a plain ViT has it.

timm's own, as BEiT (arXiv 2106.08254), has none for the keys. A softmax does not feel one, but with
it a plain ViT's weights fit as they are.
"""

import warnings
from math import isqrt, prod
from typing import Any

import torch
from timm.layers import resize_rel_pos_bias_table
from timm.models.beit import Attention, Beit
from torch import Tensor, nn

from limbeck.models.vit_det import AXIS_TABLES, resize_rows
from limbeck.ops.pos_embed import resize_distances, resize_offsets

TABLE = "relative_position_bias_table"
_OFFSETS = "attention_biases"


class TableAttention(Attention):
    """timm's attention, for any number of tokens before the patches."""

    def _get_rel_pos_bias(self) -> Tensor:
        index, table = self.relative_position_index, self.relative_position_bias_table
        if torch.is_grad_enabled():
            return table[index].permute(2, 0, 1).contiguous().unsqueeze(0)
        # The same values in less time. Its gradient would be a sum in no certain order on a GPU.
        flat = index.reshape(1, -1).expand(table.shape[1], -1)
        return table.T.contiguous().gather(1, flat).unflatten(1, index.shape).unsqueeze(0)


class QkvBiasBeit(Beit):
    """timm's BEiT whose packed projection has its bias; takes timm's arguments of a BEiT."""

    def __init__(self, **shape: Any) -> None:
        super().__init__(qkv_bias=False, **shape)
        for block in self.blocks:
            block.attn.__class__ = TableAttention  # as it is: nothing is drawn anew
            packed = block.attn.qkv
            block.attn.qkv = nn.Linear(packed.in_features, packed.out_features)
            nn.init.trunc_normal_(block.attn.qkv.weight, std=0.02)  # as timm's linear layers
            nn.init.zeros_(block.attn.qkv.bias)


def resize_tables(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``weights`` with their tables of relative positions as large as the ``model``'s.

    A BEiT's are for its grid (with entries for the class token at the end), resized as published
    (``resize_distances``), a Swin's for its windows, resized timm's way. A table does not tell a
    window that is not square: such stay as they are. A TinyViT's are resized as published, too
    (``resize_offsets``), and a ViTDet's as its blocks do it.
    """
    own = model.state_dict()
    resized: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name not in own or own[name].shape == value.shape:
            continue
        if name.endswith(_OFFSETS) and value.ndim == 2 and len(value) == len(own[name]):
            resized[name] = resize_offsets(value, own[name].shape[1])
        if name.endswith(AXIS_TABLES):
            resized[name] = resize_rows(value, len(own[name]))
        if not name.endswith(TABLE) or value.ndim != 2:
            continue
        window = model.get_submodule(name.removesuffix(f".{TABLE}")).window_size
        num_others = own[name].shape[0] - prod(2 * side - 1 for side in window)
        num_places = value.shape[0] - num_others
        if num_places < 1 or isqrt(num_places) ** 2 != num_places:
            continue
        if num_others:
            side = (isqrt(num_places) + 1) // 2
            resized[name] = resize_distances(value, (side, side), window)
            continue
        with warnings.catch_warnings(action="ignore"):  # of timm's way through memory
            resized[name] = resize_rel_pos_bias_table(value, window, own[name].shape)
    return weights | resized
