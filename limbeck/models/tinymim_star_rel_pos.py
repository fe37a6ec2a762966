"""TinyMIM* with relative positions and layer scale: the backbone of its segmentation.

TinyMIM, arXiv 2301.01296. It is BEiT's block (arXiv 2106.08254) around TinyMIM*'s two tokens and
wide end; of the two tokens the tables have six entries more. There is no classifier.
"""

from typing import Any

import torch
from timm.models.beit import gen_relative_position_index
from torch import Tensor, nn

from limbeck.models.beit_bias import QkvBiasBeit, TableAttention
from limbeck.models.tinymim_star import OUT_DIM, wide_end

NUM_OTHERS = 6


class TwoTokenAttention(TableAttention):
    """BEiT's attention with two tokens before the patches, the class token first."""

    def __init__(self, dim: int, num_heads: int, window_size: tuple[int, int]) -> None:
        super().__init__(dim, num_heads, window_size=window_size)
        patches = gen_relative_position_index(window_size)[1:, 1:]
        first = self.num_relative_distance - 3
        index = torch.zeros(len(patches) + 2, len(patches) + 2, dtype=torch.long)
        index[2:, 2:] = patches
        # In this order, so that the class token has the last word on the distillation token.
        index[1, :], index[:, 1], index[1, 1] = first, first + 1, first + 2
        index[0, :], index[:, 0], index[0, 0] = first + 3, first + 4, first + 5
        self.register_buffer("relative_position_index", index, persistent=False)
        self.num_relative_distance = first + NUM_OTHERS
        self.relative_position_bias_table = nn.Parameter(torch.zeros(first + NUM_OTHERS, num_heads))


class TinyMimStarRelPos(QkvBiasBeit):
    """``TinyMimStar`` in BEiT's blocks, without classifiers; takes timm's arguments of a BEiT.

    The final norm is the wide end, as there: ``embed_dim`` to ``out_dim``. Raises ValueError for a
    classifier.
    """

    def __init__(self, *, out_dim: int = OUT_DIM, **shape: Any) -> None:
        if shape.get("num_classes"):
            raise ValueError("a TinyMIM* with relative positions has no classifier")
        given = {"num_classes": 0, "global_pool": "token", "use_abs_pos_emb": True}
        super().__init__(**shape | given | {"use_rel_pos_bias": True})
        self.dist_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        nn.init.trunc_normal_(self.dist_token, std=0.02)
        rows = self.pos_embed
        self.pos_embed = nn.Parameter(torch.cat((rows[:, :1], rows), dim=1).detach())
        self.num_prefix_tokens = 2
        for block in self.blocks:
            old, window = block.attn, self.patch_embed.grid_size
            block.attn = TwoTokenAttention(self.embed_dim, old.num_heads, window)
            block.attn.qkv, block.attn.proj = old.qkv, old.proj
        del self.norm  # a method here, because it is what comes after the last block
        self.num_features = self.head_hidden_size = out_dim
        self.conv1x1 = wide_end(self.embed_dim, out_dim)

    def forward_features(self, x: Tensor) -> Tensor:
        """Wide tokens (B, N, out_dim) of normalised images, as timm's models have it."""
        x = self.patch_embed(x)
        prefix = (token.expand(len(x), -1, -1) for token in (self.cls_token, self.dist_token))
        x = self.pos_drop(torch.cat((*prefix, x), dim=1) + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def norm(self, x: Tensor) -> Tensor:
        """Tokens after the last block (B, N, embed_dim) to wide ones (B, N, out_dim)."""
        return self.conv1x1(x)
