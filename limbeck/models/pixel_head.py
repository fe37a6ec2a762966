"""The head of SimMIM (arXiv 2111.09886): from each token to the pixels that it stands for."""

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from limbeck.models.mae import check_heads, start_linears


class PixelHead(nn.Module):
    """A linear layer, or with ``decoder_depth`` blocks (global attention) between two.

    Differs from MAE-Lite's head for Swin in its block, which attends within a window there: at
    7 x 7 tokens it is the same but for a table of relative positions. Initialised as MAE's decoder.
    Raises UserError where heads do not divide ``decoder_embed_dim``.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_size: int,
        decoder_embed_dim: int,
        decoder_depth: int,
        decoder_num_heads: int,
    ) -> None:
        super().__init__()
        pixels = patch_size**2 * 3
        layers: list[nn.Module] = [nn.Linear(embed_dim, pixels)]
        if decoder_depth:
            check_heads(decoder_embed_dim, decoder_num_heads)
            blocks = (
                Block(decoder_embed_dim, decoder_num_heads, qkv_bias=True)
                for _ in range(decoder_depth)
            )
            enter, leave = (
                nn.Linear(embed_dim, decoder_embed_dim),
                nn.Linear(decoder_embed_dim, pixels),
            )
            layers = [enter, *blocks, leave]
        self.layers = nn.Sequential(*layers)
        start_linears(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pixels (B, L, patch_size**2 * 3) of patches (B, L, D), ordered row, column, channel."""
        return self.layers(tokens)
