"""Losses against float64 loops written from their formulas."""

import math

import pytest
import torch

from limbeck.ops.losses import (
    normalise_patches,
    patchify,
    soft_cross_entropy,
    squared_error,
)


def test_patches_are_ordered_row_column_channel():
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    expected = [
        images[1, c, 2 + row, 4 + col] for row in (0, 1) for col in (0, 1) for c in range(3)
    ]
    assert patches[1, 5].tolist() == [value.item() for value in expected]  # last patch of 2 x 3


def test_masked_pixel_loss_equals_a_loop_from_the_formula():
    torch.manual_seed(1)
    pixels = torch.rand(2, 4, 12, dtype=torch.float64)
    prediction = torch.randn(2, 4, 12)
    hidden = torch.tensor([[True, False, True, True], [False, True, False, False]])
    errors = []
    for b in range(2):
        for patch in range(4):
            if not hidden[b, patch]:
                continue
            values = pixels[b, patch].tolist()
            mean = sum(values) / 12
            var = sum((value - mean) ** 2 for value in values) / 11  # unbiased
            target = [(value - mean) / math.sqrt(var + 1e-6) for value in values]
            guess = prediction[b, patch].tolist()
            errors.append(sum((g - t) ** 2 for g, t in zip(guess, target, strict=True)) / 12)
    target = normalise_patches(pixels.float())
    loss = squared_error(prediction[hidden], target[hidden])
    assert loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)  # float32


def test_soft_cross_entropy_of_one_hot_targets_is_cross_entropy():
    logits, labels = torch.randn(5, 7), torch.randint(7, (5,))
    soft = torch.nn.functional.one_hot(labels, 7).float()
    torch.testing.assert_close(soft_cross_entropy(logits, soft), soft_cross_entropy(logits, labels))


def test_soft_cross_entropy_equals_its_formula():
    logits, targets = torch.randn(3, 4), torch.rand(3, 4)
    rows = logits.double().tolist()
    expected = 0.0
    for row, target in zip(rows, targets.tolist(), strict=True):
        norm = math.log(sum(math.exp(value) for value in row))
        expected -= sum(t * (value - norm) for t, value in zip(target, row, strict=True)) / 3
    assert soft_cross_entropy(logits, targets).item() == pytest.approx(expected, rel=1e-5)
