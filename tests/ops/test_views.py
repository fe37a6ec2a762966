"""Losses between views against slow loops in float64."""

import math

import pytest
import torch

from limbeck.ops.views import centred_cross_entropy, contrastive_loss


def normalised(row):
    return [value / math.sqrt(sum(x * x for x in row)) for value in row]


@pytest.mark.parametrize("first", [0, 2])
def test_contrastive_loss_is_the_formula(first):
    queries = torch.randn(3, 4, dtype=torch.float64)
    keys = torch.randn(6, 4, dtype=torch.float64)
    total = 0.0
    for i, q in enumerate(map(normalised, queries.tolist())):
        scores = [
            math.exp(sum(a * b for a, b in zip(q, k, strict=True)) / 0.2)
            for k in map(normalised, keys.tolist())
        ]
        total += -2 * 0.2 * math.log(scores[first + i] / sum(scores))
    loss = contrastive_loss(queries, keys, first, 0.2)
    assert loss.item() == pytest.approx(total / 3, rel=1e-12)


def test_centred_cross_entropy_is_the_formula():
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    center = torch.randn(5, dtype=torch.float64)
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp((a - c) / 0.04) for a, c in zip(t, center.tolist(), strict=True)]
        q = [math.exp(a / 0.1) for a in s]
        total -= sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True))
    loss = centred_cross_entropy(student, teacher, center, 0.1, 0.04)
    assert loss.item() == pytest.approx(total / 3, rel=1e-12)


def test_neither_keys_nor_teacher_get_a_gradient():
    ours, theirs = torch.randn(2, 3, 4, requires_grad=True).unbind()
    ours.retain_grad(), theirs.retain_grad()
    loss = contrastive_loss(ours, theirs, 0, 0.2)
    (loss + centred_cross_entropy(ours, theirs, torch.zeros(4), 0.1, 0.04)).backward()
    assert ours.grad.abs().sum() > 0 and theirs.grad is None
