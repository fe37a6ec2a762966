"""The pyramids: golden values, sizes, and the levels of encoders of stages."""

import pytest
import torch

from limbeck.models.dense.rcnn.pyramid import SimplePyramid, StagePyramid
from tests.models.dense.fills import cos_fill
from tests.models.test_vit_det import last_map, vit_det


def test_golden_values():  # row 19
    p2, p3, p4, p5, p6 = cos_fill(SimplePyramid(8, 8))([last_map(cos_fill(vit_det()))])
    assert [tuple(each.shape[2:]) for each in (p2, p6)] == [(24, 24), (2, 2)]
    assert p2[0, 3, 0, 0].item() == pytest.approx(-0.7194614238, abs=1e-9)
    sums = (4184.143948, 1044.542714, 257.960610, 65.082961, 27.826448)
    for level, expected in zip((p2, p3, p4, p5, p6), sums, strict=True):
        assert level.abs().sum().item() == pytest.approx(expected, abs=1e-6)


def test_published_sizes():  # section 2.6
    counts = {192: 2664880, 384: 3298144, 768: 5560000, 1024: 7805184}
    for dim, count in counts.items():
        with torch.device("meta"):
            pyramid = SimplePyramid(dim, 256)
        assert sum(p.numel() for p in pyramid.parameters()) == count
    with torch.device("meta"):
        levels = SimplePyramid(192, 256).levels
    own = [sum(p.numel() for p in level.parameters()) for level in levels]
    assert own == [695632, 689248, 640000, 640000]


@pytest.mark.parametrize("num_scales", [3, 4])
def test_scales_become_levels(num_scales):
    pyramid = StagePyramid([4, 6, 8, 10][:num_scales], 16)
    maps = [torch.rand(2, 4 + 2 * k, 32 >> k, 32 >> k) for k in range(num_scales)]
    levels = pyramid(maps)
    assert [tuple(each.shape) for each in levels] == [(2, 16, s, s) for s in (32, 16, 8, 4, 2)]
    assert torch.equal(levels[4], levels[3][..., ::2, ::2])
