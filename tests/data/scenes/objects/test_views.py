import numpy as np
import pytest
import torch

from limbeck.data.scenes.objects.options import ObjectViewOptions
from limbeck.data.scenes.objects.source import Annotated
from limbeck.data.scenes.objects.views import (
    crop_corner,
    fitted_image,
    fitted_size,
    train_objects,
)
from limbeck.data.views import IMAGENET_MEAN_BYTES
from tests.data.scenes.sets import outlines, run_lengths

STILL = {"flip_prob": 0.0, "distort_prob": 0.0, "scale": (1.0, 1.0)}


def sample(boxes, size=(60, 80), shapes=None, crowd=()):
    """Black, with white boxes; classes 0, 1, ..."""
    image = np.zeros((*size, 3), np.uint8)
    for left, top, right, bottom in boxes:
        image[top:bottom, left:right] = 255
    array = np.array(boxes, np.float64).reshape(-1, 4)
    is_crowd = np.array([place in crowd for place in range(len(boxes))], bool)
    areas = (array[:, 2:] - array[:, :2]).prod(1)
    own = shapes or (None,) * len(boxes)
    return image, Annotated(array, np.arange(len(boxes)), is_crowd, areas, tuple(own))


def lit(pixels):
    """The box of what is white."""
    rows, columns = np.nonzero((pixels == 255).all(0).numpy())
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_sizes_are_the_published_ones():
    """Row 20 of the sheet."""
    factors = (0.1, 0.5, 1, 1.37, 2)
    assert [fitted_size((480, 640), 1024 * each) for each in factors] == [
        (77, 102), (384, 512), (768, 1024), (1052, 1403), (1536, 2048),
    ]  # fmt: skip
    assert [fitted_size((500, 333), 1024 * each) for each in factors] == [
        (102, 68), (512, 341), (1024, 682), (1403, 934), (2048, 1364),
    ]  # fmt: skip
    assert fitted_size((480, 640), 640) == (480, 640)
    assert fitted_size((5, 2), 5 / 2 * 1) == (2, 1)  # 2.5 and 1: half to even
    for share, corner in ((0.25, (256, 128)), (0.5, (512, 256))):
        assert crop_corner((1536, 2048), (1024, 1024), (share, share)) == corner


def test_an_image_is_shown_fitted_and_filled():
    image, _ = sample([(0, 0, 80, 60)])
    pixels, size = fitted_image(image, 40)
    assert size == (30, 40) and pixels.shape == (3, 40, 40)
    assert (pixels[:, :30] == 255).all()
    assert pixels[:, 30:].unique(dim=1).flatten()[:1] == IMAGENET_MEAN_BYTES[0]


@pytest.mark.parametrize("flips", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_boxes_go_with_their_pixels(flips, scale):
    options = ObjectViewOptions(
        flip_prob=flips[0], vertical_flip_prob=flips[1], distort_prob=0, scale=(scale, scale)
    )
    found = 0
    for seed in range(8):
        pixels, objects = train_objects(sample([(8, 12, 40, 36)]), seed, options, 80)
        assert objects.size == (min(80, round(60 * scale)), min(80, round(80 * scale)))
        if len(objects.boxes):
            found += 1
            np.testing.assert_allclose(objects.boxes[0], lit(pixels), atol=1.01)
    assert found > 4


def test_published_crops_are_cut_by_one_number():
    places = {}
    for crop in ("tied", "free"):
        options = ObjectViewOptions(**STILL | {"scale": (2.0, 2.0), "crop": crop})
        places[crop] = [
            lit(train_objects(sample([(30, 20, 50, 40)]), seed, options, 40)[0])[:2]
            for seed in range(12)
        ]
    # Of 80 x 60 a square of 40 is cut 40 u to the right and 20 u down.
    assert all(
        abs((30 - left) - 2 * (20 - top)) <= 2 for left, top in places["tied"] if left and top
    )
    assert places["tied"] != places["free"]


def test_a_flip_and_a_crop_in_numbers():
    options = ObjectViewOptions(**STILL | {"flip_prob": 1.0})
    _, objects = train_objects(sample([(8, 12, 40, 36)]), 0, options, 80)
    assert objects.boxes.tolist() == [[40, 12, 72, 36]] and objects.classes.tolist() == [0]


def test_a_view_is_a_function_of_its_seed():
    options = ObjectViewOptions(mosaic_prob=0.5)
    parts = [sample([(8 + k, 12, 40, 36)]) for k in range(5)]

    def draw_others(rng, count):
        return [parts[int(rng.integers(5))] for _ in range(count)]

    def make(seed):
        return train_objects(parts[0], seed, options, 64, draw_others=draw_others)

    for seed in range(6):
        (one, there), (other, here) = make(seed), make(seed)
        assert torch.equal(one, other) and torch.equal(there.boxes, here.boxes)
    assert not torch.equal(make(0)[0], make(1)[0])


def test_crowds_and_what_is_hardly_left_are_no_objects():
    boxes = [(0, 0, 80, 60), (0, 0, 2, 2), (20, 20, 60, 50)]
    still = ObjectViewOptions(**STILL)
    _, objects = train_objects(sample(boxes, crowd=(2,)), 0, still, 80)
    assert objects.classes.tolist() == [0, 1]
    options = ObjectViewOptions(**STILL | {"scale": (8.0, 8.0)}, min_visible=0.05)
    kept = [train_objects(sample(boxes), seed, options, 80)[1] for seed in range(20)]
    assert all(0 not in objects.classes.tolist() for objects in kept)  # 1/48 of it is seen


def test_the_negative_has_no_class_at_all():
    """Complaint 5, the data's half."""
    _, objects = train_objects(sample([]), 0, ObjectViewOptions(), 32, has_masks=True)
    assert objects.boxes.shape == (0, 4) and objects.classes.shape == (0,)
    assert objects.classes.dtype == torch.int64 and objects.masks.shape == (0, 32, 32)


def test_a_box_is_the_extent_of_what_is_left_of_its_outline():
    # A triangle with its tip at the left: cut at x = 40, what is right of that is lower than the
    # box's right part.
    triangle = [[0.0, 30.0, 80.0, 0.0, 80.0, 60.0]]
    box = [(0, 0, 80, 60)]
    options = ObjectViewOptions(**STILL | {"scale": (2.0, 2.0)}, crop="tied", min_visible=0)
    for seed in range(10):
        _, objects = train_objects(
            sample(box, shapes=[triangle]), seed, options, 80, has_masks=True
        )
        rows, columns = np.nonzero(objects.masks[0].numpy())
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(objects.boxes[0], seen, atol=1.5)


@pytest.mark.parametrize("flips", [(0, 0), (1, 0), (0, 1)])
def test_outlines_and_runs_become_the_same_masks(flips):
    inside = np.zeros((60, 80), bool)
    inside[10:30, 20:50] = True
    inside[15:20, 25:35] = False
    options = ObjectViewOptions(
        flip_prob=flips[0], vertical_flip_prob=flips[1], distort_prob=0, scale=(1.0, 1.0)
    )
    shapes = [outlines(inside), run_lengths(inside)]
    box = (20, 10, 50, 30)
    _, objects = train_objects(sample([box] * 2, shapes=shapes), 0, options, 80, has_masks=True)
    wanted = np.flip(inside, [axis for axis in (1, 0) if flips[1 - axis]])
    for mask in objects.masks:
        np.testing.assert_array_equal(mask[:60].numpy(), wanted)
        assert not mask[60:].any()


def test_a_mosaic_has_four_parts_whose_boxes_go_with_their_pixels():
    options = ObjectViewOptions(**STILL | {"mosaic_prob": 1.0}, min_visible=0)
    part = sample([(8, 12, 40, 36)], shapes=[[[8, 12, 40, 12, 40, 36, 8, 36]]])
    for seed in range(6):
        pixels, objects = train_objects(
            part, seed, options, 80, has_masks=True, draw_others=lambda rng, count: [part] * count
        )
        assert objects.size == (80, 80) and 2 <= len(objects.boxes) <= 4
        inside = torch.zeros(80, 80)
        for left, top, right, bottom in objects.boxes.round().int().tolist():
            inside[top:bottom, left:right] = 1
        white = (pixels.float().mean(0) > 157).float()
        assert (inside - white).abs().mean() < 0.03
        assert (objects.masks.any(0).float() - white).abs().mean() < 0.03
