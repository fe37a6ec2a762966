"""A plain ViT whose class token learns from a teacher while the patches learn from the labels.

MAE-Lite's fine-tuning with DeiT's distillation (arXiv 2205.14443, first version; DeiT: 2012.12877):
no token is added. The mean of the patch tokens goes through ``fc_norm`` to the main head, the class
token through a norm of its own to the distillation head; at inference both logits are averaged.
"""

from typing import Any

from timm.layers import LayerNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class ClsDistilledVit(VisionTransformer):
    """timm's ViT with a second norm and head (``dist_norm``, ``head_dist``) on the class token.

    ``shape`` are timm's arguments of a ViT (img_size, patch_size, embed_dim, depth, num_heads,
    mlp_ratio). Raises ValueError for a ``global_pool`` other than "avg".
    """

    def __init__(self, *, num_classes: int = 1000, global_pool: str = "avg", **shape: Any) -> None:
        if global_pool != "avg":
            raise ValueError(f"global_pool {global_pool}: the class head reads the mean, avg")
        super().__init__(num_classes=num_classes, global_pool="avg", **shape)
        self.dist_norm = LayerNorm(self.embed_dim, eps=1e-6)
        self.head_dist = self._make_head(num_classes)

    def _make_head(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        """The heads of the labels and of the teacher."""
        return self.head, self.head_dist

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Two fresh classifiers of ``num_classes``, or none for 0."""
        assert global_pool in (None, "avg"), "The class head reads the mean of the patches."
        super().reset_classifier(num_classes)
        self.head_dist = self._make_head(num_classes)

    def read_heads(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) of the class and the distillation head for tokens (B, N, embed_dim)."""
        x = self.fc_norm(tokens[:, self.num_prefix_tokens :].mean(dim=1))  # [B, D]
        x_dist = self.dist_norm(tokens[:, 0])
        return self.head(self.head_drop(x)), self.head_dist(self.head_drop(x_dist))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The mean of both heads' logits (B, C); ``pre_logits``: the normed patch mean instead."""
        if pre_logits:
            return super().forward_head(x, pre_logits=True)
        logits, logits_dist = self.read_heads(x)
        return (logits + logits_dist) / 2
