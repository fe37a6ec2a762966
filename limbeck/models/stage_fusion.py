"""One picture of the stages of a hierarchical encoder, for a decoder to read.

The multi-scale fusion of Hiera's masked pre-training (arXiv 2306.00989), with which arXiv
2404.12210 pre-trains its small Hiera.
"""

from timm.layers import LayerNorm
from torch import Tensor, nn

from limbeck.models.encoder import EncoderFacts
from limbeck.records import Tap


def ends_of_stages(encoder: EncoderFacts) -> tuple[int, ...]:
    """The blocks after which tokens are merged; none in a plain encoder."""
    strides = encoder.block_strides
    return tuple(k for k in range(encoder.depth - 1) if strides[k] != strides[k + 1])


class StageFusion(nn.Module):
    """LayerNorm of the sum of the last tokens and those of every earlier stage, each convolved.

    A stage's convolution merges as many tokens as make one of the last (at 224 pixels 4 x 4 and
    2 x 2 of Hiera-Tiny's, in pre-training). ``taps`` is what it reads: the ends of the stages, then
    the output.
    """

    def __init__(self, encoder: EncoderFacts) -> None:
        super().__init__()
        ends = [Tap("tokens", block) for block in ends_of_stages(encoder)]
        self.taps: tuple[Tap, ...] = (*ends, Tap("output"))
        self.unit_sides = [encoder.mask_unit // encoder.tap_stride(tap) for tap in ends]
        self.heads = nn.ModuleList()
        for tap in ends:
            side = encoder.patch_size // encoder.tap_stride(tap)
            self.heads.append(nn.Conv2d(encoder.tap_dim(tap), encoder.output_dim, side, side))
        self.norm = LayerNorm(encoder.output_dim, eps=1e-6)

    def forward(self, values: dict[Tap, Tensor]) -> Tensor:
        """Tokens (B, N, D) as the output's, of the ``taps`` of an encoder that drops units."""
        *stages, output = (values[tap] for tap in self.taps)
        fused = output
        for head, side, x in zip(self.heads, self.unit_sides, stages, strict=True):
            # Each unit is a picture of its own: no convolution looks over its border.
            units = x.unflatten(1, (-1, side, side)).movedim(-1, 2)  # [B, U, D, h, w]
            merged = head(units.flatten(0, 1)).flatten(2).mT  # [B * U, N / U, D]
            fused = fused + merged.reshape(output.shape)
        return self.norm(fused)
