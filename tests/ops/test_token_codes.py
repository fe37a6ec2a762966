"""Tokens in fewer bits: error bounds, exact sizes, and channels that are larger than the others."""

import pytest
import torch

from limbeck.ops.relations import relation_loss
from limbeck.ops.token_codes import (
    channel_moments,
    decode_bf16,
    decode_int8,
    encode_bf16,
    encode_int8,
)

BF16_STEP = 2.0**-7  # of the power of two below a value: 8 bits, the first of them implied


def draw(channel_factor=1.0, width=64):
    """Tokens of which one channel is everywhere ``channel_factor`` times as large."""
    tokens = torch.randn(3, 20, width)
    tokens[..., 5] = channel_factor * (1 + 0.1 * tokens[..., 5])
    return tokens


@pytest.mark.parametrize("factor", [1.0, 100.0, 1e4])
def test_the_error_of_int8_is_half_a_step_of_the_token_and_the_channel(factor):
    tokens = draw(factor)
    shift, spread = channel_moments(draw(factor))
    codes, scales = encode_int8(tokens, shift, spread)
    again = decode_int8(codes, scales, shift, spread)
    bound = spread * scales.float().unsqueeze(-1) / 2
    # Beyond that the rounding of float32, in the subtraction of the shift and its addition.
    assert ((again - tokens).abs() <= bound * 1.001 + 1e-6 * tokens.abs().amax()).all()


def test_sizes_are_exact():
    tokens = draw()
    codes, scales = encode_int8(tokens, *channel_moments(tokens))
    assert codes.dtype == torch.int8 and codes.nbytes == tokens.numel()
    assert scales.dtype == torch.float16 and scales.nbytes == 2 * 3 * 20
    assert encode_bf16(tokens).nbytes == 2 * tokens.numel()


def test_bf16_errs_by_half_of_its_step():
    tokens = draw(1e4)
    bits = encode_bf16(tokens)
    assert bits.dtype == torch.int16
    assert ((decode_bf16(bits) - tokens).abs() <= BF16_STEP / 2 * tokens.abs()).all()
    assert torch.equal(decode_bf16(bits), tokens.bfloat16().float())


def test_a_channel_that_is_large_everywhere_does_not_coarsen_the_others():
    """Without shift and spread it would: the relations of the others are lost."""
    others = torch.arange(64) != 5
    errors = {}
    for factor in (1.0, 100.0):
        tokens = draw(factor)
        moments = channel_moments(draw(factor))
        for name, (shift, spread) in {
            "by channel": moments,
            "plain": (torch.zeros(64), torch.ones(64)),
        }.items():
            again = decode_int8(*encode_int8(tokens, shift, spread), shift, spread)
            a, b = tokens[:, None, :, others], again[:, None, :, others]
            errors[name, factor] = relation_loss(b, b, a, a).item()
    assert errors["by channel", 100.0] < 1.5 * errors["by channel", 1.0]
    assert errors["plain", 100.0] > 100 * errors["by channel", 100.0]


def test_constant_and_zero_tokens_come_back():
    shift, spread = channel_moments(torch.full((2, 3, 4), 7.0))
    assert torch.equal(spread, torch.ones(4))
    for tokens in (torch.full((2, 3, 4), 7.0), torch.zeros(2, 3, 4)):
        codes, scales = encode_int8(tokens, shift, spread)
        # Equal values of one token are all the largest, so of 127 steps that err by half a one.
        again = decode_int8(codes, scales, shift, spread)
        torch.testing.assert_close(again, tokens, rtol=0, atol=7 / 254)


def test_a_channel_that_hardly_varied_is_no_outlier_where_it_does():
    seen = draw()
    seen[..., 7] = 0.0
    _, spread = channel_moments(seen)
    assert spread[7] == pytest.approx(0.1 * seen.flatten(0, 1).std(0, correction=0).median().item())
