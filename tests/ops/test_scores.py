"""Scores: heads mixed against a loop, maps compared against torch's own divergence."""

import pytest
import torch
import torch.nn.functional as F

from limbeck.ops.scores import map_divergence, mix_heads


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


def test_map_divergence_is_the_mean_over_batch_heads_and_queries():
    student, teacher = torch.randn(2, 2, 3, 4, 5)
    expected = F.kl_div(
        student.log_softmax(-1), teacher.softmax(-1), reduction="sum"
    ) / (2 * 3 * 4)  # fmt: skip
    torch.testing.assert_close(map_divergence(student, teacher), expected)
    assert map_divergence(teacher + 3, teacher).item() == pytest.approx(0, abs=1e-6)
