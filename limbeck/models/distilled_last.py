"""A plain ViT with a distillation token that has no place in the image: G2SD's fine-tuning.

G2SD, arXiv 2302.14771; the token and the second head are DeiT's, arXiv 2012.12877. The released
code puts the token at the end of the sequence and gives it no positional embedding, so the table
of positions stays the pre-trained one, of 1 + L rows. Attention knows no order but that of the
positions, so here the token is computed beside the class token (class, distillation, patches),
where whoever pools the patches can't meet it; nothing else changes. A file holds no order.
"""

from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn


class DistilledLastVit(VisionTransformerDistilled):
    """timm's distilled ViT whose distillation token gets no position.

    One final norm; ``head`` reads the class token, ``head_dist`` the distillation token; at
    inference both logits are averaged. ``shape`` are timm's arguments of a ViT (img_size,
    patch_size, embed_dim, depth, num_heads, mlp_ratio). Raises ValueError for a ``global_pool``
    other than "token": the mean of all tokens would have the distillation token in it.
    """

    def __init__(
        self, *, num_classes: int = 1000, global_pool: str = "token", **shape: Any
    ) -> None:
        if global_pool != "token":
            raise ValueError(f"global_pool {global_pool}: the class head reads its token")
        super().__init__(num_classes=num_classes, global_pool="token", **shape)
        self.pos_embed = nn.Parameter(self.pos_embed.detach()[:, 1:].clone())  # [1, 1 + L, D]

    def _pos_embed(self, x: Tensor) -> Tensor:
        batch_size = x.shape[0]
        x = torch.cat((self.cls_token.expand(batch_size, -1, -1), x), dim=1) + self.pos_embed
        token = self.dist_token.expand(batch_size, -1, -1)
        return self.pos_drop(torch.cat((x[:, :1], token, x[:, 1:]), dim=1))  # [B, 2 + L, D]
