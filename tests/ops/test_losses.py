"""Losses against float64 loops written from their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from limbeck.ops.losses import (
    cosine_error,
    divergence,
    feature_loss,
    masked_l1_loss,
    normalise_patches,
    patchify,
    smooth_l1_error,
    soft_cross_entropy,
    squared_error,
    whiten,
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


@pytest.mark.parametrize(
    ("divisor", "golden"),
    [
        (1, {0: -1.7286704627, 1: -1.7241628474, 383: -0.0022538076, 767: 1.7286704627}),
        (768, {0: -1.7286601043}),  # small enough to show the 1e-6
    ],
)
def test_golden_targets_of_a_ramp(divisor, golden):
    ramp = torch.arange(768, dtype=torch.float64).view(1, 1, 768) / divisor
    target = normalise_patches(ramp)[0, 0]
    for place, value in golden.items():
        assert target[place].item() == pytest.approx(value, abs=1e-10)
    if divisor == 1:  # what a prediction of zero costs
        cost = squared_error(torch.zeros_like(target), target)
        assert cost.item() == pytest.approx(0.9986979166, abs=1e-10)


def test_golden_order_of_a_patch():
    row, column, channel = (torch.arange(n, dtype=torch.float64) for n in (224, 224, 3))
    image = 672 * row[:, None] + 3 * column + channel[:, None, None]  # [3, 224, 224]
    patches = patchify(image.unsqueeze(0), 16)
    assert patches[0, 15, [0, 1, 2, 3, 48, 767]].tolist() == [
        10800, 10801, 10802, 10803, 11472, 20927,
    ]  # fmt: skip
    assert patches[0, 1, 0] == 48
    of_hiera = patchify(image.unsqueeze(0), 16, is_channel_first=True)
    assert of_hiera[0, 15, [0, 1, 2, 256]].tolist() == [10800, 10803, 10806, 10801]
    target = normalise_patches(patches)[0, 15]
    assert target[0].item() == pytest.approx(-1.6334836929, abs=1e-10)
    assert target[48].item() == pytest.approx(-1.4166966797, abs=1e-10)


def test_masked_l1_is_the_mean_over_masked_pixels():
    prediction, target = torch.randn(2, 2, 3, 4)
    hidden = torch.rand(2, 3, 4) > 0.5
    loss = masked_l1_loss(prediction, target, hidden)
    torch.testing.assert_close(loss, (prediction - target)[hidden].abs().mean())
    half = masked_l1_loss(prediction.bfloat16(), target, hidden)
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "loss"), [(0.5, 0.0625), (1, 0.25), (1.5, 0.5625), (2, 1), (3, 2), (-4, 3)]
)
def test_golden_smooth_l1(error, loss):
    target = torch.randn(2, 3, 8)
    assert smooth_l1_error(target + error, target, 2.0).item() == pytest.approx(loss, rel=1e-5)


def test_feature_loss_is_smooth_l1_to_the_whitened_target():
    student, teacher = torch.randn(2, 3, 8), 5 * torch.randn(2, 3, 8) + 1
    target = whiten(teacher)
    assert target.mean(-1).abs().max() < 1e-6
    # 1e-6 in the root, of variances of about 25.
    torch.testing.assert_close(target.var(-1, correction=0), torch.ones(2, 3))
    assert feature_loss(student, teacher, 2.0) == smooth_l1_error(student, target, 2.0)


def test_cosine_error_is_a_mean_over_tokens():
    student, teacher = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    cosines = [
        (s @ t / (s.norm() * t.norm())).item()
        for s, t in zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True)
    ]
    assert cosine_error(student, teacher).item() == pytest.approx(1 - sum(cosines) / 6, abs=1e-6)
    assert cosine_error(torch.zeros(2, 3, 8), teacher) == 1
    assert cosine_error(student.bfloat16(), teacher).dtype == torch.float32


def test_divergence_is_the_mean_over_batch_heads_and_queries():
    student, teacher = torch.randn(2, 2, 3, 4, 5)
    expected = F.kl_div(
        student.log_softmax(-1), teacher.softmax(-1), reduction="sum"
    ) / (2 * 3 * 4)  # fmt: skip
    torch.testing.assert_close(divergence(student, teacher), expected)
    assert divergence(teacher + 3, teacher).item() == pytest.approx(0, abs=1e-6)
