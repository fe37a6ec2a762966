"""TinyMIM*: a plain ViT with a distillation token and wide features for its two classifiers.

TinyMIM, arXiv 2301.01296; the token and the second head are DeiT's, arXiv 2012.12877. Parameter
names, tensor shapes and the order of the tokens (class, distillation, patches) are those of the
published file. What was never published is chosen here, once:

- pooling comes after the wide layer: the class head reads the mean of the wide patch tokens, the
  distillation head the wide distillation token;
- both go through the one ``fc_norm`` of the file, which is as wide as they are. A file whose
  ``fc_norm`` is as wide as the blocks norms every token before the wide layer;
- at inference the two heads' logits are averaged, as DeiT does.
"""

from typing import Any

from timm.layers import LayerNorm
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

OUT_DIM = 1280  # of the published TinyMIM*-T


class TinyMimStar(VisionTransformerDistilled):
    """timm's distilled ViT with TinyMIM*'s end, in place of the final norm.

    ``conv1x1`` widens each token after the last block from ``embed_dim`` to ``out_dim``: norm,
    linear, GELU. ``fc_norm_dim`` is the width of ``fc_norm``: ``out_dim`` (if not given) or
    ``embed_dim``. ``shape`` are timm's arguments of a ViT (img_size, patch_size, embed_dim, depth,
    num_heads, mlp_ratio). Raises ValueError for another ``fc_norm_dim``, and for a ``global_pool``
    other than "avg".
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        global_pool: str = "avg",
        out_dim: int = OUT_DIM,
        fc_norm_dim: int | None = None,
        **shape: Any,
    ) -> None:
        if global_pool != "avg":
            raise ValueError(f"global_pool {global_pool}: the class head reads the mean, avg")
        super().__init__(num_classes=0, global_pool="token", **shape)
        fc_norm_dim = fc_norm_dim or out_dim
        if fc_norm_dim not in (out_dim, self.embed_dim):
            raise ValueError(
                f"fc_norm is {fc_norm_dim} wide, neither {out_dim} as the classifiers nor "
                f"{self.embed_dim} as the blocks"
            )
        del self.norm  # a method here, because timm calls it after the last block
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = out_dim
        self.norms_before = fc_norm_dim != out_dim
        self.conv1x1 = wide_end(self.embed_dim, out_dim)
        self.fc_norm = LayerNorm(fc_norm_dim, eps=1e-6)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Two fresh classifiers of ``num_classes``, or none for 0."""
        assert global_pool in (None, "avg"), "The class head reads the mean of the patches."
        self.num_classes = num_classes
        for name in ("head", "head_dist"):
            head: nn.Module = nn.Identity()
            if num_classes:
                head = _init_linear(nn.Linear(self.num_features, num_classes))
            setattr(self, name, head.train(self.training))

    def norm(self, x: Tensor) -> Tensor:
        """Tokens after the last block (B, N, embed_dim) to wide ones (B, N, out_dim)."""
        return self.conv1x1(self.fc_norm(x) if self.norms_before else x)

    def read_heads(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) of the class and the distillation head for wide tokens (B, N, out_dim)."""
        pooled = tokens[:, self.num_prefix_tokens :].mean(dim=1), tokens[:, 1]
        x, x_dist = pooled if self.norms_before else map(self.fc_norm, pooled)
        return self.head(self.head_drop(x)), self.head_dist(self.head_drop(x_dist))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The mean of both heads' logits (B, C); ``pre_logits``: the pooled patches instead."""
        if pre_logits:
            return x[:, self.num_prefix_tokens :].mean(dim=1)
        logits, logits_dist = self.read_heads(x)
        return (logits + logits_dist) / 2


def wide_end(embed_dim: int, out_dim: int) -> nn.Sequential:
    """What widens the tokens after the last block."""
    # An epsilon of 1e-5 here and of 1e-6 everywhere else: so in the published model.
    norm = nn.LayerNorm(embed_dim, eps=1e-5)
    return nn.Sequential(norm, _init_linear(nn.Linear(embed_dim, out_dim)), nn.GELU())


def _init_linear(linear: nn.Linear) -> nn.Linear:
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
