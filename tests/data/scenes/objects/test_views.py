"""Views: pure functions of the seed; boxes, outlines and pixels move together."""

import numpy as np
import pytest
import torch

from limbeck.data.scenes.objects.options import ObjectViewOptions
from limbeck.data.scenes.objects.source import Annotated
from limbeck.data.scenes.objects.views import fitted_image, fitted_size, train_objects

PLAIN = ObjectViewOptions(distort_prob=0.0)


def sample(shape=None, seed=0, crowd=False):
    """A white block in a black image, and its box."""
    rng = np.random.default_rng(seed)
    image = np.zeros((60, 80, 3), np.uint8)
    y, x = int(rng.integers(5, 30)), int(rng.integers(5, 40))
    image[y : y + 20, x : x + 30] = 255
    box = np.array([[x, y, x + 30, y + 20]], np.float64)
    shapes = {
        None: None,
        "outline": [[x, y, x + 30, y, x + 30, y + 20, x, y + 20]],
        "runs": runs(image[..., 0] > 0),
    }
    found = Annotated(box, np.array([2]), np.array([crowd]), np.array([600.0]), (shapes[shape],))
    return image, found


def runs(is_inside):
    flat = is_inside.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    return {"counts": np.diff([0, *ends, len(flat)]).tolist(), "size": list(is_inside.shape)}


# Sheet: row 20, S = 1024
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), [(77, 102), (384, 512), (768, 1024), (1052, 1403), (1536, 2048)]),
        ((500, 333), [(102, 68), (512, 341), (1024, 682), (1403, 934), (2048, 1364)]),
    ],
)
def test_sizes_of_large_scale_jitter(size, expected):
    assert [fitted_size(size, 1024 * s) for s in (0.1, 0.5, 1, 1.37, 2)] == expected
    assert fitted_size((480, 640), 1024) == (768, 1024)
    assert fitted_size((480, 640), 640) == (480, 640)


# Sheet: row 20, u = 0.25, 0.5 of a 1536 x 2048 image
def test_tied_crops_lie_on_the_diagonal(monkeypatch):
    import limbeck.data.scenes.objects.views as views

    class Fixed:
        def __init__(self, u):
            self.draws = iter([np.array([0.9, 0.9]), 1.0, np.array([u, 0.77])])

        def random(self, size=None):
            return next(self.draws)

    options = ObjectViewOptions(scale=(0.1, 2.0), crop="tied", distort_prob=0.0)
    image = np.zeros((480, 640, 3), np.uint8)
    boxes = np.array([[300.0, 200, 400, 300]])
    found = Annotated(boxes, np.zeros(1, int), np.zeros(1, bool), np.ones(1), (None,))
    for u, corner in ((0.25, (256, 128)), (0.5, (512, 256))):
        _, (moved, _), _ = views._view((image, found), Fixed(u), options, (1024, 1024), 1024)
        expected = np.array([960, 640, 1280, 960]) - [*corner, *corner]
        assert np.allclose(moved[0], np.clip(expected, 0, 1024))


@pytest.mark.parametrize("shape", [None, "outline", "runs"])
def test_boxes_masks_and_pixels_stay_together(shape):
    options = ObjectViewOptions(
        scale=(1.0, 2.0), distort_prob=0.0, vertical_flip_prob=0.5, min_visible=0.0
    )
    for seed in range(12):
        pixels, objects = train_objects(sample(shape, seed), seed, options, 64, has_masks=True)
        white = (pixels[0] > 127).numpy()
        if not len(objects.boxes):
            assert white.sum() < 64
            continue
        assert objects.classes.tolist() == [2]
        rows, columns = (np.flatnonzero(white.any(axis)) for axis in (1, 0))
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(objects.boxes[0].numpy() - seen).max() <= 1.5  # smoothed edges
        own = objects.masks[0].numpy()
        assert (own ^ white).sum() <= 0.08 * white.sum() + 64
        assert objects.size == tuple(min(side, 64) for side in objects.size)


def test_views_are_functions_of_the_seed():
    options = ObjectViewOptions(mosaic_prob=0.5)

    def others(rng, count):
        return [sample(seed=int(rng.integers(100))) for _ in range(count)]

    first, again = (
        [train_objects(sample(), seed, options, 64, draw_others=others) for seed in range(6)]
        for _ in range(2)
    )
    for (pixels, objects), (same, equal) in zip(first, again, strict=True):
        assert torch.equal(pixels, same) and torch.equal(objects.boxes, equal.boxes)
    assert len({tuple(pixels.flatten().tolist()) for pixels, _ in first}) == 6


def test_mosaics_hold_four_images():
    options = ObjectViewOptions(mosaic_prob=1.0, scale=(1.0, 1.0), distort_prob=0.0)

    def others(rng, count):
        return [sample("outline", seed=10 + k) for k in range(count)]

    numbers = []
    for seed in range(6):
        pixels, objects = train_objects(
            sample("outline"), seed, options, 128, has_masks=True, draw_others=others
        )
        numbers.append(len(objects.boxes))
        white = (pixels[0] > 200).numpy()
        union = objects.masks.any(0).numpy()
        assert (union ^ white).sum() < 0.2 * white.sum() + 64
        assert objects.size == (128, 128)
    assert max(numbers) == 4


def test_crowds_and_what_is_hardly_seen_are_left_out():
    assert len(train_objects(sample(crowd=True), 0, PLAIN, 64)[1].boxes) == 0
    wide = ObjectViewOptions(scale=(3.0, 3.0), distort_prob=0.0, min_visible=0.9)
    for seed in range(8):
        _, objects = train_objects(sample(), seed, wide, 64)
        for left, top, right, bottom in objects.boxes.tolist():
            assert (right - left) * (bottom - top) >= 0.9 * 600 * (64 * 3 / 80) ** 2 - 1


def test_what_is_shown_lies_top_left_on_the_mean_colour():
    image = np.full((30, 60, 3), 255, np.uint8)
    pixels, size = fitted_image(image, 40)
    assert size == (20, 40) and (pixels[:, :20] == 255).all()
    assert pixels[:, 20:].unique(dim=2).shape == (3, 20, 1)
    assert pixels[:, 30, 0].tolist() == [124, 116, 104]
