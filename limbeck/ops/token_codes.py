"""Tokens in fewer bits: int8 with one scale per token, and bfloat16.

A scale per token alone fails where some channels are tens of times as large as the others in every
token, as in many large vision Transformers (Massive Activations in Large Language Models, arXiv
2402.17762): the scale would be theirs, and the others would share a few steps. So the channels of
each view are first shifted and divided by their own mean and deviation over its tokens, which are
stored with it (4 D bytes beside N D). A view is coded by itself: nothing is fitted to a data set.
"""

import torch
from jaxtyping import Float, Float16, Float32, Int8, Int16
from torch import Tensor

STEPS = 127
HALF = torch.finfo(torch.float16)
LARGEST = HALF.max
"""Beyond this a token can't be coded in int8."""


def encode_int8(
    tokens: Float[Tensor, "B N D"],
) -> tuple[
    Int8[Tensor, "B N D"], Float16[Tensor, "B N"], Float16[Tensor, "B D"], Float16[Tensor, "B D"]
]:
    """Codes, scales, shift and spread: tokens = shift + spread * scale * code.

    shift and spread are mean and standard deviation over the tokens of a view, the latter at least
    0.1 of its median over channels, so that hardly any code is spent on a channel that hardly
    varies. scale = max |(tokens - shift) / spread| / 127 over the channels of a token. The error of
    a channel is at most scale * spread / 2. Tokens must lie within +-LARGEST.
    """
    x = tokens.float()
    deviation = x.std(dim=1, correction=0)
    floor = 0.1 * deviation.median(dim=1, keepdim=True).values
    # What is subtracted and divided by is what is stored, so that its rounding adds no error.
    shift = x.mean(dim=1).half()
    spread = deviation.maximum(floor).clamp(HALF.tiny, HALF.max).half()
    y = (x - shift.float().unsqueeze(1)) / spread.float().unsqueeze(1)
    scales = (y.abs().amax(dim=-1) / STEPS).clamp_min(HALF.tiny).half()
    codes = (y / scales.float().unsqueeze(-1)).round().clamp(-STEPS, STEPS).to(torch.int8)
    return codes, scales, shift, spread


def decode_int8(
    codes: Int8[Tensor, "B N D"],
    scales: Float16[Tensor, "B N"],
    shift: Float16[Tensor, "B D"],
    spread: Float16[Tensor, "B D"],
) -> Float32[Tensor, "B N D"]:
    """The tokens of ``encode_int8``."""
    y = codes * scales.float().unsqueeze(-1)
    return y.mul_(spread.float().unsqueeze(1)).add_(shift.float().unsqueeze(1))


def encode_bf16(tokens: Float[Tensor, "B N D"]) -> Int16[Tensor, "B N D"]:
    """Tokens rounded to bfloat16 (to 2^-8 of each value), as its bits: NumPy has no such type."""
    return tokens.to(torch.bfloat16).view(torch.int16)


def decode_bf16(bits: Int16[Tensor, "B N D"]) -> Float32[Tensor, "B N D"]:
    """The tokens of ``encode_bf16``."""
    return bits.view(torch.bfloat16).float()
