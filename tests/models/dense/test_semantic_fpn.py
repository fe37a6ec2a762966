"""Semantic FPN's head: golden numbers through its neck, sizes, and odd grids."""

import pytest
import torch

from limbeck.models.dense.neck import PlainNeck
from limbeck.models.dense.semantic_fpn import SemanticFpnHead
from tests.models.dense.fills import cos_fill, taps


def test_golden_logits_through_neck_and_head():
    maps = cos_fill(PlainNeck("narrow", (8,) * 4, "batch"))(taps())
    logits = cos_fill(SemanticFpnHead((2,) * 4, 8, 3, "batch"))(maps)
    assert logits.shape == (2, 3, 32, 32)
    assert logits.sum().item() == pytest.approx(-162.0201885475, abs=1e-7)
    assert logits[0, 0, 0, 0].item() == pytest.approx(0.1638438587, abs=1e-9)


def test_sizes():
    with torch.device("meta"):
        head = SemanticFpnHead((48,) * 4, 128, 150, "batch")
    sizes = [sum(v.numel() for v in part.parameters()) for part in (head.scales, head.classify)]
    assert sizes == [665_344, 19_350]
    assert [len(scale) for scale in head.scales] == [1, 1, 2, 3]


def test_maps_that_do_not_halve():
    sizes = ((21, 30), (11, 15), (5, 7), (3, 4))
    head = SemanticFpnHead((4, 6, 8, 10), 32, 5, "group")
    maps = [torch.rand(1, d, *s) for d, s in zip((4, 6, 8, 10), sizes, strict=True)]
    assert head(maps).shape == (1, 5, 21, 30)
