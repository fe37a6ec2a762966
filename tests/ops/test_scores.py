"""Scores: heads mixed against a loop."""

import torch

from limbeck.ops.scores import mix_heads


def test_each_output_is_a_weighted_sum_of_heads():
    scores, weight = torch.randn(2, 3, 4, 5), torch.randn(2, 3)
    mixed = mix_heads(scores, weight)
    assert mixed.shape == (2, 2, 4, 5)
    for b in range(2):
        for out in range(2):
            expected = sum(weight[out, head] * scores[b, head] for head in range(3))
            torch.testing.assert_close(mixed[b, out], expected)


def test_half_precision_is_left_before_heads_are_summed():
    scores, weight = torch.randn(1, 3, 4, 4).bfloat16(), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mix_heads(scores, weight)
    torch.testing.assert_close(mixed, mix_heads(scores.float(), weight), rtol=0, atol=0)
    assert mixed.dtype == torch.float32
