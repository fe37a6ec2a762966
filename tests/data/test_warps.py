"""Filters and resampling against plain loops, and what they leave as it is."""

import math

import numpy as np
import pytest

from limbeck.data.warps import (
    convolve,
    gaussian_blur,
    motion_blur,
    motion_kernel,
    plasma,
    sample,
    zoom,
)

RNG = np.random.default_rng(0)
IMAGE = RNG.random((12, 12, 3))


def test_a_gaussian_blur_is_the_weighted_mean_of_the_neighbours():
    radius = int(4 * 0.7 + 0.5)
    weights = {d: math.exp(-0.5 * (d / 0.7) ** 2) for d in range(-radius, radius + 1)}
    total = sum(weights.values()) ** 2
    expected = np.zeros_like(IMAGE)
    for row in range(12):
        for column in range(12):
            for down, a in weights.items():
                for right, b in weights.items():
                    place = min(max(row + down, 0), 11), min(max(column + right, 0), 11)
                    expected[row, column] += a * b / total * IMAGE[place]
    assert np.allclose(gaussian_blur(IMAGE, 0.7), expected)


def test_a_blur_wider_than_the_image_keeps_its_mean():
    field = RNG.uniform(-1, 1, (12, 12))
    blurred = gaussian_blur(field, 30.0, truncate=3, mode="symmetric")
    assert np.allclose(blurred, field.mean(), atol=0.01)  # nothing but the mean is that coarse


def test_no_blur_is_none():
    assert gaussian_blur(IMAGE, 0.0) is IMAGE
    assert np.allclose(gaussian_blur(IMAGE, 0.05), IMAGE)  # the nearest pixel is too far


@pytest.mark.parametrize(("radius", "sigma"), [(6, 1), (10, 3), (20, 15)])
def test_motion_weights_sum_to_one_and_fall(radius, sigma):
    weights = motion_kernel(radius, sigma)
    assert len(weights) == 2 * radius + 1
    assert weights.sum() == pytest.approx(1)
    assert (np.diff(weights) <= 0).all()


def test_motion_smears_along_its_line_alone():
    point = np.zeros((25, 25))
    point[12, 12] = 1
    level = motion_blur(point, 3, 2, degrees=0)
    assert level[12].sum() == pytest.approx(1) and level.sum() == pytest.approx(1)
    assert np.allclose(level[12, 12:5:-1], motion_kernel(3, 2))  # each takes from its right
    upright = motion_blur(point, 3, 2, degrees=90)
    assert upright[:, 12].sum() == pytest.approx(1)
    assert np.allclose(motion_blur(np.ones((9, 9)), 3, 2, degrees=33), 1)


def test_a_filter_is_the_plain_sum():
    kernel = RNG.random((3, 3))
    kernel += kernel[::-1]
    kernel += kernel[:, ::-1]
    padded = np.pad(IMAGE, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    expected = sum(
        kernel[i, j] * padded[i : i + 12, j : j + 12] for i in range(3) for j in range(3)
    )
    assert np.allclose(convolve(IMAGE, kernel), expected)


def test_zoom_enlarges_the_centre():
    assert np.allclose(zoom(IMAGE, 1.0), IMAGE)
    ramp = np.arange(12.0)[:, None] * np.ones(12)
    enlarged = zoom(ramp, 2.0)  # of the middle six rows, 3 to 8
    assert enlarged.shape == ramp.shape
    assert enlarged[0, 0] == pytest.approx(3) and enlarged[-1, 0] == pytest.approx(8)
    assert np.allclose(np.diff(enlarged[:, 0]), 5 / 11)


def test_sampling_between_pixels_and_beyond_the_border():
    rows, columns = np.mgrid[:12, :12].astype(float)
    assert np.allclose(sample(IMAGE, rows, columns, "reflect"), IMAGE)
    between = sample(IMAGE, rows[:11, :11] + 0.5, columns[:11, :11], "reflect")
    assert np.allclose(between, (IMAGE[:11, :11] + IMAGE[1:, :11]) / 2)
    beyond = np.array([[-1.0]]), np.array([[0.0]])
    assert np.allclose(sample(IMAGE, *beyond, "reflect"), IMAGE[1, 0])
    assert np.allclose(sample(IMAGE, *beyond, "symmetric"), IMAGE[0, 0])


@pytest.mark.parametrize("mode", ["symmetric", "reflect"])
def test_far_beyond_the_border_the_image_goes_on_mirrored(mode):
    """As a corner that moves far, of elastic_transform at its second severity, asks for."""
    far = np.pad(IMAGE, ((50, 50), (50, 50), (0, 0)), mode=mode)
    rows, columns = np.mgrid[-50:62, -50:62].astype(float)
    assert np.allclose(sample(IMAGE, rows, columns, mode), far)


def test_clouds_fill_their_range_and_are_smoother_the_faster_they_decay():
    rough, smooth = (plasma(64, decay, np.random.default_rng(0)) for decay in (1.2, 3.0))
    for clouds in (rough, smooth):
        assert clouds.shape == (64, 64)
        assert clouds.min() == 0 and clouds.max() == 1
    assert np.abs(np.diff(rough)).mean() > 3 * np.abs(np.diff(smooth)).mean()
