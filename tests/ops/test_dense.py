"""Losses of dense predictions: known values of G2SD's second stage, and loops over places."""

import math

import pytest
import torch

from limbeck.ops.dense import channel_wise_loss, feature_richness_losses, pixel_divergence

# [1, C, 2, 2] in rows
STUDENT = torch.tensor([[[0.0, 1, 2, 3], [1, 1, 1, 1]]]).unflatten(2, (2, 2))
TEACHER = torch.tensor([[[3.0, 2, 1, 0], [0, 0, 0, 2]]]).unflatten(2, (2, 2))


@pytest.mark.parametrize(
    ("temperature", "expected", "floor"), [(1.0, 2.159568, 0.932910), (2.0, 6.431842, 5.026704)]
)
def test_channel_wise_values_and_their_floor(temperature, expected, floor):
    loss = channel_wise_loss(STUDENT, TEACHER, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert channel_wise_loss(TEACHER, TEACHER, temperature).item() == pytest.approx(floor, rel=1e-5)
    two = channel_wise_loss(STUDENT.repeat(2, 1, 1, 1), TEACHER.repeat(2, 1, 1, 1), temperature)
    torch.testing.assert_close(two, loss)


def test_weighted_as_published_and_of_nothing():
    assert 3 * channel_wise_loss(STUDENT, TEACHER).item() == pytest.approx(6.478704, rel=1e-5)
    nothing = torch.zeros(1, 150, 128, 128)
    assert channel_wise_loss(nothing, nothing).item() == pytest.approx(math.log(16384), rel=1e-5)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.365747), (2.0, 0.490437)])
def test_the_divergence_of_classes_place_by_place(temperature, expected):
    loss = pixel_divergence(STUDENT, TEACHER, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert pixel_divergence(TEACHER, TEACHER, temperature).item() == pytest.approx(0, abs=1e-7)


MAPS = torch.tensor([[[[1.0, 2.0]], [[0.0, -1.0]]]])  # [1, 2 channels, 1, 2]
OBJECTNESS = torch.tensor([[[[0.0, 2.0]], [[-1.0, -2.0]], [[-3.0, 1.0]]]])  # [1, 3 anchors, 1, 2]


def test_feature_richness_values():
    nothing = torch.zeros_like(MAPS), torch.zeros_like(OBJECTNESS)
    features, anchors = feature_richness_losses([nothing[0]], [MAPS], [nothing[1]], [OBJECTNESS])
    assert features.item() == pytest.approx(3.551561, rel=1e-5)
    assert anchors.item() == pytest.approx(3 * math.log(2), rel=1e-5)
    for step, expected in ((500, 0.211496), (250, 0.1057479), (0, 0.0)):
        total = min(1, step / 500) * (0.001 * features + 0.1 * anchors)
        assert total.item() == pytest.approx(expected, rel=1e-5)
    twice = feature_richness_losses(
        [nothing[0]] * 2, [MAPS] * 2, [nothing[1]] * 2, [OBJECTNESS] * 2
    )
    assert [each.item() for each in twice] == pytest.approx([7.103122, 4.158883], rel=1e-5)


def test_of_equal_networks_the_teachers_entropy_is_left():
    features, anchors = feature_richness_losses([MAPS], [MAPS], [OBJECTNESS], [OBJECTNESS])
    assert features.item() == 0
    assert anchors.item() == pytest.approx(1.368398, rel=1e-5)


def test_levels_that_differ_are_refused():
    with pytest.raises(ValueError, match="shorter|longer"):
        feature_richness_losses([MAPS], [MAPS, MAPS], [OBJECTNESS], [OBJECTNESS])


def test_no_gradient_reaches_the_teacher_and_half_precision_is_not_used():
    own, target = (torch.randn(2, 4, 3, 3, dtype=torch.bfloat16) for _ in range(2))
    own_logits, logits = (40 * torch.randn(2, 3, 3, 3, dtype=torch.bfloat16) for _ in range(2))
    for each in (own, target, own_logits, logits):
        each.requires_grad_()
    losses = feature_richness_losses([own], [target], [own_logits], [logits])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses)
    sum(losses).backward()
    assert own.grad.isfinite().all() and own_logits.grad.isfinite().all()
    assert target.grad is None and logits.grad is None


def test_against_loops_in_float64():
    torch.manual_seed(0)
    maps = [[torch.randn(2, 4, side, side) for side in (4, 2)] for _ in range(2)]
    logits = [[torch.randn(2, 3, side, side) for side in (4, 2)] for _ in range(2)]
    expected = [0.0, 0.0]
    for level, side in enumerate((4, 2)):
        sums = [0.0, 0.0, 0.0]
        for b in range(2):
            for y in range(side):
                for x in range(side):
                    own, theirs = (each[level][b, :, y, x].double() for each in logits)
                    p, q = own.sigmoid(), theirs.sigmoid()
                    difference = (maps[1][level] - maps[0][level])[b, :, y, x].double()
                    sums[0] += q.max() * (difference**2).sum()
                    sums[1] -= q.max() * (q * p.log() + (1 - q) * (1 - p).log()).sum()
                    sums[2] += q.max()
        expected = [expected[0] + sums[0] / sums[2], expected[1] + sums[1] / sums[2]]
    found = feature_richness_losses(maps[0], maps[1], logits[0], logits[1])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)
