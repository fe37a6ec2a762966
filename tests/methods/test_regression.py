"""The regression loss: a loop over masked pixels, whatever the stride of the tokens."""

from dataclasses import replace

import pytest
import torch

from limbeck.methods.options import MaskTokenOptions
from limbeck.methods.regression import Regression
from limbeck.records import Batch, Features, Tap
from tests.fakes import FakeEncoder


@pytest.mark.parametrize("before_block", [None, 1])
@pytest.mark.parametrize("stride", [4, 8])  # tokens as large as the masked patches, or twice
def test_equals_a_loop_over_masked_pixels(stride, before_block):
    facts = replace(
        FakeEncoder().facts, patch_size=stride, block_strides=(stride, stride),
        input_strides=(stride, stride), mask_unit=4,
    )  # fmt: skip
    loss = Regression(MaskTokenOptions(), facts, before_block).double()
    (tap,) = loss.taps
    assert tap == (Tap("output") if before_block is None else Tap("block_input", 1))
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    ids_keep = torch.tensor([[0, 3], [2, 1]])
    tokens = torch.randn(2, 1 + (8 // stride) ** 2, 8, dtype=torch.float64)
    one = Batch(images, images, None, ("a", "b"), torch.arange(2), ids_keep)
    guess = loss.head(loss.norm(tokens)[:, 1:]).unflatten(2, (stride, stride, 3))
    errors = [
        abs(guess[b, y // stride * (8 // stride) + x // stride, y % stride, x % stride, c]
            - (images[b, c, y, x] - 0.5) / 0.5)
        for b, patch in ((0, 1), (0, 2), (1, 0), (1, 3))
        for y in range(patch // 2 * 4, patch // 2 * 4 + 4)
        for x in range(patch % 2 * 4, patch % 2 * 4 + 4)
        for c in range(3)
    ]  # fmt: skip
    total = loss(Features(None, 1, (8 // stride,) * 2, {tap: tokens}), one)
    torch.testing.assert_close(total, sum(errors) / len(errors))


def test_the_head_is_linear_unless_told():
    facts = FakeEncoder().facts
    (linear,) = Regression(MaskTokenOptions(), facts).head.layers
    assert linear.weight.shape == (48, 8)
    enter, block, leave = Regression(MaskTokenOptions(decoder_depth=1), facts).head.layers
    assert enter.weight.shape == (96, 8) and leave.weight.shape == (48, 96)
    assert block.attn.num_heads == 3
