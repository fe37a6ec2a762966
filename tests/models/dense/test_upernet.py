"""UPerNet's head and the auxiliary one: golden numbers, sizes, starts, and odd grids."""

import pytest
import torch

from limbeck.models.dense import upernet
from limbeck.models.dense.neck import PlainNeck
from limbeck.models.dense.upernet import AuxHead, UperHead
from tests.models.dense.fills import cos_fill, taps

DIMS = (8,) * 4


def golden_maps():
    return cos_fill(PlainNeck("same", DIMS, "batch"))(taps())


def test_golden_logits_through_neck_and_head():
    logits = cos_fill(UperHead(DIMS, 8, 3, "batch"))(golden_maps())
    assert logits.shape == (2, 3, 32, 32)
    assert logits.sum().item() == pytest.approx(1370.5242857, abs=1e-6)
    assert logits[0, 0, 0, 0].item() == pytest.approx(1.0578087052, abs=1e-9)
    assert logits[1, 2, 17, 5].item() == pytest.approx(0.0881484278, abs=1e-9)


def test_golden_logits_of_the_auxiliary_head(monkeypatch):
    monkeypatch.setattr(upernet, "AUX_WIDTH", 8)
    logits = cos_fill(AuxHead(8, 3, "batch"))(golden_maps()[2])
    assert logits.sum().item() == pytest.approx(-2.4087440708, abs=1e-9)
    assert logits[0, 0, 0, 0].item() == pytest.approx(0.0457774633, abs=1e-9)


def count(module):
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize(
    ("dim", "width", "size", "aux"),
    [
        (192, 192, 4_272_918, 481_430),
        (384, 384, 17_024_406, 923_798),
        (768, 768, 67_963_542, 1_808_534),
        (1024, 1024, 120_764_566, 2_398_358),
        (768, 192, 6_042_390, 1_808_534),
    ],
)
def test_sizes(dim, width, size, aux):
    with torch.device("meta"):
        head = UperHead((dim,) * 4, width, 150, "batch")
        assert (count(head), count(AuxHead(dim, 150, "batch"))) == (size, aux)
    assert len(head.state_dict()) == 74


def test_sizes_of_the_parts():
    with torch.device("meta"):
        head = UperHead((192,) * 4, 192, 150, "batch")
    parts = (head.classify, head.pools, head.bottleneck, head.laterals, head.smooth, head.fuse)
    assert tuple(map(count, parts)) == (28_950, 148_992, 1_659_264, 111_744, 996_480, 1_327_488)


def test_it_starts_as_published():
    head = UperHead((192,) * 4, 192, 150, "batch")
    assert head.laterals[0].conv.weight.std().item() == pytest.approx(0.1021, rel=0.02)
    assert head.smooth[0].conv.weight.std().item() == pytest.approx(0.0340, rel=0.02)
    assert head.classify.conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.classify.conv.bias.any()


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_maps_that_do_not_halve(norm):
    head = UperHead((4, 6, 8, 10), 32, 5, norm).train()
    maps = [torch.rand(2, d, *s) for d, s in zip((4, 6, 8, 10), SIZES, strict=True)]
    logits = head(maps)
    assert logits.shape == (2, 5, 21, 30)
    logits.sum().backward()
    assert all(value.grad is not None for value in head.parameters())


SIZES = ((21, 30), (11, 15), (5, 7), (3, 4))
