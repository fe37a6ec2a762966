"""Tokens in fewer bits: int8 with one scale per token, and bfloat16.

int8 alone fails where some channels are tens of times as large as the others in every token, as
they are in many large vision Transformers (Vision Transformers Need Registers, arXiv 2309.16588,
and Massive Activations in Large Language Models, arXiv 2402.17762): the scale would be theirs, and
the others would share a few steps. So channels are shifted and scaled first, by numbers that are
kept once for all tokens. They need not be exact, only of the right order.
"""

import torch
from jaxtyping import Float, Float16, Float32, Int8, Int16
from torch import Tensor

STEPS = 127
SMALLEST_SCALE = torch.finfo(torch.float16).tiny


def channel_moments(
    tokens: Float[Tensor, "B N D"],
) -> tuple[Float32[Tensor, " D"], Float32[Tensor, " D"]]:
    """Mean and standard deviation of each channel; the latter at least 0.1 of its median.

    A channel that hardly varies here may vary elsewhere, and must not be taken for an outlier.
    """
    flat = tokens.float().flatten(0, 1)
    spread = flat.std(dim=0, correction=0)
    floor = 0.1 * spread.median()
    return flat.mean(dim=0), spread.clamp_min(floor) if floor > 0 else torch.ones_like(spread)


def encode_int8(
    tokens: Float[Tensor, "B N D"], shift: Float32[Tensor, " D"], spread: Float32[Tensor, " D"]
) -> tuple[Int8[Tensor, "B N D"], Float16[Tensor, "B N"]]:
    """Codes c and scales s per token such that tokens = shift + spread * s * c.

    s = max |(tokens - shift) / spread| / 127 over the channels of a token. The error of a channel
    is at most s * spread / 2. Tokens must be finite.
    """
    y = (tokens.float() - shift) / spread
    # In the rounding of the stored scale, so that it adds no error of its own.
    scales = (y.abs().amax(dim=-1) / STEPS).clamp_min(SMALLEST_SCALE).half()
    codes = (y / scales.float().unsqueeze(-1)).round().clamp(-STEPS, STEPS)
    return codes.to(torch.int8), scales


def decode_int8(
    codes: Int8[Tensor, "B N D"],
    scales: Float16[Tensor, "B N"],
    shift: Float32[Tensor, " D"],
    spread: Float32[Tensor, " D"],
) -> Float32[Tensor, "B N D"]:
    """The tokens of ``encode_int8``."""
    return torch.addcmul(shift, codes * scales.float().unsqueeze(-1), spread)


def encode_bf16(tokens: Float[Tensor, "B N D"]) -> Int16[Tensor, "B N D"]:
    """Tokens rounded to bfloat16 (to 2^-8 of each value), as its bits: NumPy has no such type."""
    return tokens.to(torch.bfloat16).view(torch.int16)


def decode_bf16(bits: Int16[Tensor, "B N D"]) -> Float32[Tensor, "B N D"]:
    """The tokens of ``encode_bf16``."""
    return bits.view(torch.bfloat16).float()
