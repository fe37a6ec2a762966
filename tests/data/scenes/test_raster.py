import numpy as np
import pytest

from limbeck.data.scenes.raster import decode_runs, encode_runs, fill_polygon, fill_runs, whole_mask
from limbeck.data.source import BadImage
from tests.data.scenes.sets import compressed, run_lengths


def whole(patch, height, width):
    made = np.zeros((height, width), bool)
    rows, columns = patch.is_inside.shape
    made[patch.top : patch.top + rows, patch.left : patch.left + columns] = patch.is_inside
    return made


def slow_fill(points, height, width):
    """Even-odd by a ray to the right of each pixel's centre."""
    corners = list(zip(points[::2], points[1::2], strict=True))
    made = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            crossed = 0
            for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
                if (y0 <= y + 0.5) != (y1 <= y + 0.5):
                    crossed += x0 + (y + 0.5 - y0) * (x1 - x0) / (y1 - y0) <= x + 0.5
            made[y, x] = crossed % 2
    return made


def test_outlines_against_a_slow_reference():
    rng = np.random.default_rng(0)
    for number in range(20):
        points = rng.uniform(-4, 24, 2 * (3 + number % 6)).tolist()
        found = whole(fill_polygon(points, 16, 20), 16, 20)
        assert np.array_equal(found, slow_fill(points, 16, 20))


def test_a_rectangle_is_its_pixels():
    patch = fill_polygon([2, 1, 6, 1, 6, 4, 2, 4], 6, 8)
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:6] = True
    assert np.array_equal(whole(patch, 6, 8), expected)
    assert patch.is_inside.shape == (3, 4)  # a large image's small things take little memory
    for points in ([], [1, 1], [-9, -9, -3, -9, -3, -3], [20, 1, 30, 1, 30, 4]):
        assert not whole(fill_polygon(points, 6, 8), 6, 8).any()


def test_damaged_outlines():
    for points in ([1, 2, 3], [1, 2, float("inf"), 3]):
        with pytest.raises(BadImage, match="outline in its annotation is damaged"):
            fill_polygon(points, 6, 8)


def test_run_lengths_go_down_the_columns():
    found = whole(fill_runs([1, 2, 3], 2, 3), 2, 3)
    assert not fill_runs([6], 2, 3).is_inside.any()
    assert found.tolist() == [[False, True, False], [True, False, False]]
    with pytest.raises(BadImage, match="not those of 3 x 2"):
        fill_runs([1, 2], 2, 3)
    with pytest.raises(BadImage, match="not those of 3 x 2"):
        fill_runs([7, -1], 2, 3)


def test_compressed_run_lengths():
    rng = np.random.default_rng(1)
    for share in (0.001, 0.3, 0.999):
        is_inside = rng.random((60, 70)) < share
        runs = run_lengths(is_inside)["counts"]
        assert decode_runs(compressed(is_inside)["counts"]) == runs
        assert encode_runs(is_inside) == compressed(is_inside)["counts"]
        assert np.array_equal(whole(fill_runs(runs, 60, 70), 60, 70), is_inside)
    # As pycocotools writes it: 2 x 2 with its lower left pixel.
    assert decode_runs("112") == [1, 1, 2]
    for text in ("\n", "p", "oooooooooooooooo"):
        with pytest.raises(BadImage, match="damaged"):
            fill_runs(decode_runs(text), 2, 2)


def test_runs_and_patches_are_whole_masks_again():
    is_inside = np.random.default_rng(0).random((7, 5)) < 0.5
    for mask in (is_inside, ~is_inside, np.ones((3, 4), bool), np.zeros((3, 4), bool)):
        runs = decode_runs(encode_runs(mask))
        assert np.array_equal(whole_mask(fill_runs(runs, *mask.shape), mask.shape), mask)
