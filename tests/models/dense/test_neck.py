"""Necks: golden numbers and sizes of the published ones, and what each does to a scale."""

import pytest
import torch

from limbeck.models.dense.neck import LevelNeck, PlainNeck, neck_dims
from tests.models.dense.fills import cos_fill, taps


@pytest.mark.parametrize(
    ("kind", "sums"),
    [
        ("same", (-1.424014665, -0.464657576, 9.337245142, 75.209021941)),
        ("narrow", (0.2680349282, 0.4189092054, 0.6585582427, 9.4895147841)),
    ],
)
def test_golden_maps(kind, sums):
    maps = cos_fill(PlainNeck(kind, (8,) * 4, "batch"))(taps())
    assert [each.shape[-1] for each in maps] == [32, 16, 8, 4]
    for each, expected in zip(maps, sums, strict=True):
        assert each.sum().item() == pytest.approx(expected, abs=1e-8)


def count(module):
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize(
    ("kind", "dims", "size"),
    [
        ("same", (192,) * 4, 443_328),
        ("same", (384,) * 4, 1_771_392),
        ("same", (768,) * 4, 7_081_728),
        ("wide", (192, 192, 192, 1280), 11_063_424),
        ("narrow", (192,) * 4, 101_712),
    ],
)
def test_sizes(kind, dims, size):
    with torch.device("meta"):
        assert count(PlainNeck(kind, dims, "batch")) == size


def test_sizes_of_the_parts():
    with torch.device("meta"):
        wide = PlainNeck("wide", (192, 192, 192, 1280), "batch")
        narrow = PlainNeck("narrow", (192,) * 4, "batch")
    for neck, sizes in (
        (wide, (1_476_480, 590_592, 148_224, 8_848_128)),
        (narrow, (46_272, 36_912, 9_264, 9_264)),
    ):
        assert tuple(map(count, (neck.up4, neck.up2, neck.level, neck.down))) == sizes


def test_levels_are_normed_by_channel_and_brought_to_one_width():
    dims = (6, 8)
    maps = [100 + torch.rand(2, 6, 5, 7), torch.rand(2, 8, 3, 4)]
    same = LevelNeck("same", dims)(maps)
    assert [each.shape for each in same] == [each.shape for each in maps]
    assert all(each.mean(1).abs().max() < 1e-4 for each in same)
    assert neck_dims("narrow", (8, 12)) == (2, 2) and neck_dims("wide", (8, 12)) == (32, 32)
    narrow = LevelNeck("narrow", (8, 12))([torch.rand(1, 8, 4, 4), torch.rand(1, 12, 2, 2)])
    assert [tuple(each.shape) for each in narrow] == [(1, 2, 4, 4), (1, 2, 2, 2)]
