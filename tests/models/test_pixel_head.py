"""The pixel head: its shapes, its start and what is refused."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.pixel_head import PixelHead


@pytest.mark.parametrize(("depth", "count"), [(0, 1), (2, 4)])
def test_from_tokens_to_pixels(depth, count):
    head = PixelHead(12, 4, 8, depth, 2)
    assert len(head.layers) == count
    assert head(torch.randn(2, 5, 12)).shape == (2, 5, 48)
    last = head.layers[-1]
    assert not last.bias.any()
    assert last.weight.abs().max() <= (6 / sum(last.weight.shape)) ** 0.5


def test_blocks_let_tokens_see_each_other():
    for depth in (0, 1):
        head, tokens = PixelHead(12, 4, 8, depth, 2), torch.randn(1, 2, 12, requires_grad=True)
        head(tokens)[0, 0].sum().backward()
        assert tokens.grad[0, 1].any().item() is (depth == 1)


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="8 wide, which does not divide into 3 heads"):
        PixelHead(12, 4, 8, 1, 3)
