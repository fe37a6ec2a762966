"""Tokens in fewer bits: error bounds, exact sizes, and channels that are larger than the others."""

import pytest
import torch

from limbeck.ops.relations import relation_loss
from limbeck.ops.token_codes import (
    LARGEST,
    STEPS,
    decode_bf16,
    decode_int8,
    encode_bf16,
    encode_int8,
)

BF16_STEP = 2.0**-7  # of the power of two below a value: 8 bits, the first of them implied


def draw(channel_factor=1.0, token_factor=1.0):
    """Tokens (3, 20, 64) of which one channel, and in it one token, are larger than the others."""
    tokens = torch.randn(3, 20, 64)
    tokens[..., 5] = channel_factor * (1 + 0.1 * tokens[..., 5])
    tokens[:, 7, 9] *= token_factor
    return tokens


@pytest.mark.parametrize("token_factor", [1.0, 100.0])
@pytest.mark.parametrize("channel_factor", [1.0, 100.0, 1e4])
def test_the_error_of_int8_is_half_a_step_of_the_token_and_the_channel(
    channel_factor, token_factor
):
    tokens = draw(channel_factor, token_factor)
    codes, scales, shift, spread = encode_int8(tokens)
    again = decode_int8(codes, scales, shift, spread)
    bound = spread.float().unsqueeze(1) * scales.float().unsqueeze(-1) / 2
    # Beyond that the rounding of float32, in the subtraction of the shift and its addition.
    assert ((again - tokens).abs() <= bound * 1.001 + 1e-6 * tokens.abs().amax()).all()
    # No token is further than sqrt(N) deviations from the mean, whatever the channels are.
    assert (scales.float() <= 1.001 * 20**0.5 / STEPS).all()


def test_sizes_are_exact():
    tokens = draw()
    codes, scales, shift, spread = encode_int8(tokens)
    assert codes.dtype == torch.int8 and codes[0].nbytes == 20 * 64
    assert scales.dtype == torch.float16 and scales[0].nbytes == 2 * 20
    assert shift[0].nbytes == spread[0].nbytes == 2 * 64
    assert encode_bf16(tokens)[0].nbytes == 2 * 20 * 64


def test_bf16_errs_by_half_of_its_step():
    tokens = draw(1e4)
    bits = encode_bf16(tokens)
    assert bits.dtype == torch.int16
    assert ((decode_bf16(bits) - tokens).abs() <= BF16_STEP / 2 * tokens.abs()).all()
    assert torch.equal(decode_bf16(bits), tokens.bfloat16().float())


def test_a_channel_that_is_large_everywhere_does_not_coarsen_the_others():
    """With a scale per token alone it would: the relations of the others are lost."""
    others = torch.arange(64) != 5
    errors = {}
    for factor in (1.0, 100.0):
        tokens = draw(factor)
        scale = tokens.abs().amax(-1, keepdim=True) / STEPS
        coded = {
            "ours": decode_int8(*encode_int8(tokens)),
            "per token": (tokens / scale).round() * scale,
        }
        for name, again in coded.items():
            a, b = tokens[:, None, :, others], again[:, None, :, others]
            errors[name, factor] = relation_loss(b, b, a, a).item()
    assert errors["ours", 100.0] < 1.5 * errors["ours", 1.0]
    assert errors["per token", 100.0] > 100 * errors["ours", 100.0]


def test_a_view_is_coded_by_itself():
    """Whatever else is in its batch: a store that is filled in later is the same."""
    tokens = draw()
    for whole, alone in zip(encode_int8(tokens), encode_int8(tokens[1:2]), strict=True):
        assert torch.equal(whole[1:2], alone)


def test_constant_and_extreme_tokens_come_back():
    for value in (0.0, 7.0, -LARGEST):
        tokens = torch.full((2, 3, 4), value)
        assert torch.equal(decode_int8(*encode_int8(tokens)), tokens)
    ends = torch.tensor([-LARGEST, LARGEST]).repeat(1, 4).view(1, 2, 4)
    torch.testing.assert_close(decode_int8(*encode_int8(ends)), ends, rtol=1 / STEPS, atol=0)
