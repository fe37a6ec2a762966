"""The throw-away block of D2-MAE: queries and keys alone, after the student's last block.

An Experimental Study on Exploring Strong Lightweight Vision Transformers via Masked Image Modeling
Pre-Training, arXiv 2404.12210.
"""

from timm.layers import LayerNorm, RelPosBias
from torch import Tensor, nn

from limbeck.models.encoder import EncoderFacts
from limbeck.records import Tap


class QueryKeyBlock(nn.Module):
    """Attention scores of a block that does nothing else, after the last of ``encoder``.

    norm1 (eps 1e-6) and a projection, with the head count of the last block. The released code has
    a packed projection whose values' rows never get a gradient: they are left out, and the others
    start as if they were there (xavier-uniform, zero biases). Where the encoder's scores have a
    relative position bias, so have these, at zero.
    """

    def __init__(self, encoder: EncoderFacts) -> None:
        super().__init__()
        width, self.num_heads = encoder.tap_dim(Tap("tokens", -1)), encoder.num_heads[-1]
        self.norm1 = LayerNorm(width, eps=1e-6)
        self.qk = nn.Linear(width, 2 * width)
        bound = (6 / (width + 3 * width)) ** 0.5
        nn.init.uniform_(self.qk.weight, -bound, bound)
        nn.init.zeros_(self.qk.bias)
        self.position_bias: RelPosBias | None = None
        if encoder.has_position_bias:
            self.position_bias = RelPosBias(
                encoder.grid, self.num_heads, prefix_tokens=int(encoder.has_cls_token)
            )
            nn.init.zeros_(self.position_bias.relative_position_bias_table)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores (B, nh, N, N), queries keys^T / sqrt(hd), of tokens (B, N, D)."""
        qk = self.qk(self.norm1(tokens)).unflatten(-1, (2, self.num_heads, -1))
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)  # [B, nh, N, hd] each
        # The scale goes on one factor first: in half precision the plain product can overflow.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, nh, N, N]
        if self.position_bias is None:
            return scores
        # Without the CLS token, the first, where only this side has one.
        num_tokens = tokens.shape[1]
        return scores + self.position_bias.get_bias()[..., -num_tokens:, -num_tokens:]
