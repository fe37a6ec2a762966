"""The light pyramid: sizes of its maps, and what each of them sees."""

import pytest
import torch

from limbeck.models.dense.light_pyramid import LightPyramid, Separable


@pytest.mark.parametrize("is_plain", [True, False])
def test_three_maps_of_one_width(is_plain):
    grids = [(6, 8)] * 2 if is_plain else [(12, 16), (6, 8), (3, 4)]
    dims = [5, 7, 9][: len(grids)]
    pyramid = LightPyramid(dims, 4, "batch", is_plain=is_plain).eval()
    maps = [torch.rand(2, dim, *grid) for dim, grid in zip(dims, grids, strict=True)]
    found = pyramid(maps)
    assert [tuple(x.shape) for x in found] == [(2, 4, 12, 16), (2, 4, 6, 8), (2, 4, 3, 4)]
    # What the coarsest map says reaches the finest.
    maps[-1] = maps[-1] + 1
    again = pyramid(maps)
    assert all(not torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_separable_adds_to_what_it_gets():
    module = Separable(4, "batch").eval()
    x = torch.rand(1, 4, 6, 6)
    with torch.no_grad():
        module.mix.conv.weight.zero_()
        module.mix.norm.bias.zero_()
    assert torch.equal(module(x), x)
