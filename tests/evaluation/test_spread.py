"""Rank and uniformity of features: from their formulas, and at their ends."""

import math

import pytest
import torch

from limbeck.evaluation import spread
from limbeck.evaluation.spread import effective_rank, uniformity


def features(count, width):
    return torch.randn(
        count, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def test_the_rank_by_its_formula():
    values = features(40, 6)
    sigma = torch.linalg.eigvalsh(values.T @ values).sqrt().tolist()
    shares = [value / sum(sigma) + 1e-7 for value in sigma]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert effective_rank(values) == pytest.approx(expected)


def test_the_rank_is_a_number_of_directions():
    assert effective_rank(torch.eye(8)) == pytest.approx(8, abs=1e-3)
    collapsed = torch.ones(20, 1) @ torch.ones(1, 8)
    assert effective_rank(collapsed) == pytest.approx(1, abs=1e-3)


def test_uniformity_by_its_formula(monkeypatch):
    values = features(12, 5)
    units = [row / row.norm() for row in values]
    pairs = [
        math.exp(-2 * float((units[i] - units[j]).square().sum()))
        for i in range(12) for j in range(i)
    ]  # fmt: skip
    assert uniformity(values) == pytest.approx(math.log(sum(pairs) / len(pairs)))
    assert uniformity(torch.ones(4, 3)) == pytest.approx(0)
    assert uniformity(7 * values) == pytest.approx(uniformity(values))
    monkeypatch.setattr(spread, "MOST_PAIRED", 6)
    assert uniformity(values) == uniformity(values[::2])
