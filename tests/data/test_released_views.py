import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data import released_views
from limbeck.data.released_views import (
    OPERATIONS,
    check_streams,
    draw_released,
    released_generator,
    released_noise,
    released_view,
    scale_box,
)
from limbeck.data.views import NO_BOX, erase
from limbeck.errors import RunError
from tests.data.images import photo


class Recorder:
    """A generator that keeps what was drawn of it, by the name of the draw."""

    def __init__(self, seed):
        self.rng = released_generator(seed)
        self.uniforms, self.chosen = [], []

    def random(self):
        self.uniforms.append(self.rng.random())
        return self.uniforms[-1]

    def choice(self, *args):
        drawn = self.rng.choice(*args)
        self.chosen += [OPERATIONS[place] for place in drawn]
        self.num_before = len(self.uniforms)
        return drawn

    def normal(self, *args):
        return self.rng.normal(*args)


def test_the_streams_are_those_of_the_released_views(monkeypatch):
    raw = [int(word) for word in released_generator(12345).bit_generator.random_raw(4)]
    assert raw == [0x3A32B18DB2FFC19D, 0x51171315C9E4C4DE, 0xCC2024823444EFD9, 0xAD1F06AEA486E910]
    assert released_generator(12345).random(4).tolist() == [
        0.22733602246716966, 0.31675833970975287, 0.7973654573327341, 0.6762546707509746,
    ]  # fmt: skip
    rng = released_generator(12345)
    assert rng.choice(15, 2).tolist() == [10, 3] and rng.random() == 0.31675833970975287
    rng = released_generator(12345)
    assert rng.normal(9, 0.5) == pytest.approx(8.288087481772685, abs=1e-15)
    assert rng.random() == 0.31675833970975287
    expected = [0.38036911, 0.06964849, -1.11864513]
    # One rounding to float32.
    assert released_noise(7, (3, 1, 1)).ravel().tolist() == pytest.approx(expected, abs=1e-7)
    check_streams()
    monkeypatch.setattr(released_views, "released_noise", lambda *_: np.float32(1.6905257))
    with pytest.raises(RunError, match="numpy .* draws other random numbers"):
        check_streams()


# Of an image 500 wide and 375 high: seed; tries; crop; the flip's draw; the operations drawn, with
# the draw of their chance, and magnitude and argument where applied; the erasing's draw.
# fmt: off
ROWS = [
    (12345, 1, (104, 189, 245, 221), 0.391110,
     [("ShearY", 0.5983, None, None), ("PosterizeIncreasing", 0.1867, 9.180529, 1)], 0.9418),
    (1, 1, (13, 128, 282, 366), 0.311831,
     [("TranslateXRel", 0.8277, None, None), ("SolarizeAdd", 0.4092, 9.182286, 101)], 0.0276),
    (4, 3, (13, 29, 359, 334), 0.871635,
     [("Rotate", 0.9022, None, None), ("ContrastIncreasing", 0.4772, 9.158323, 0.17575097)],
     0.9842),
    (5, 1, (8, 20, 359, 429), 0.053931,
     [("PosterizeIncreasing", None, 8.607610, 1), ("SolarizeIncreasing", None, 9.817391, 5)],
     0.6524),
]
# fmt: on


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"seed {row[0]}")
def test_views_are_the_released_ones(row):
    seed, tries, crop, flip, operations, erasing = row
    rng = Recorder(seed)
    drawn = draw_released(rng, 375, 500)
    assert drawn.crop == crop
    place = 2 * tries + 2  # two draws a try, and two for the place
    assert rng.uniforms[place] == pytest.approx(flip, abs=5e-7)
    assert drawn.is_flipped == (flip < 0.5)
    assert rng.chosen == [name for name, *_ in operations]
    assert rng.num_before == place + 1
    applied = [each for each in operations if each[2] is not None]
    for ours, (name, _, magnitude, argument) in zip(drawn.operations, applied, strict=True):
        assert ours.name == name and ours.magnitude == pytest.approx(magnitude, abs=1e-6)
        assert ours.argument == pytest.approx(argument, abs=5e-9)
    if operations[0][1] is not None:
        assert rng.uniforms[place + 1] == pytest.approx(operations[0][1], abs=5e-5)
        assert rng.uniforms[place + 2] == pytest.approx(operations[1][1], abs=5e-5)
    is_erased = erasing < 0.25
    assert (drawn.erase_box != NO_BOX) == is_erased
    at = len(rng.uniforms) - (6 if is_erased else 1)  # a try, a place and the seed of the noise
    assert rng.uniforms[at] == pytest.approx(erasing, abs=5e-5)


def test_the_sign_is_drawn_after_the_magnitude():
    rng = Recorder(4)
    draw_released(rng, 375, 500)
    assert rng.uniforms[-2] == pytest.approx(0.7889, abs=5e-5)


def test_the_erased_box_and_its_noise_are_the_released_ones():
    drawn = draw_released(released_generator(1), 375, 500)
    assert scale_box(drawn.erase_box, 224) == drawn.erase_box == (34, 92, 119, 108)
    assert scale_box(drawn.erase_box, 384) == (58, 158, 204, 185)
    assert drawn.noise_seed == 325552969
    noise = released_noise(drawn.noise_seed, (3, 119, 108))
    assert noise.dtype == np.float32
    expected = [0.2068843, -1.1024612, -0.1198645]
    assert noise.ravel()[:3].tolist() == pytest.approx(expected, abs=5e-8)


def test_no_bit_is_one_bit():
    drawn = draw_released(released_generator(232), 375, 500)
    assert [each.name for each in drawn.operations][:1] == ["PosterizeIncreasing"]
    first = drawn.operations[0]
    assert first.magnitude == 10 and first.argument == 1
    rng, drawn_normals = Recorder(232), []
    normal = rng.normal
    rng.normal = lambda *args: drawn_normals.append(normal(*args)) or drawn_normals[-1]
    draw_released(rng, 375, 500)
    assert rng.chosen == ["PosterizeIncreasing"] * 2
    assert drawn_normals[0] == pytest.approx(10.142735, abs=5e-7)
    view = released_view(np.array(photo(500, 375)), 232, 64)
    assert len(view.student.unique()) <= 4  # bicubic corners aside, 0 and 128


def test_a_ribbon_falls_back_to_its_centre():
    rng = Recorder(0)
    drawn = draw_released(rng, 100, 1200)
    assert drawn.crop == (0, 533, 100, 133)
    assert rng.num_before == 2 * 10 + 1  # ten tries, the flip, and nothing for the place
    assert draw_released(released_generator(0), 1200, 100).crop == (533, 0, 133, 100)
    for shape in [(1, 500, 3), (500, 1, 3)]:
        for seed in range(20):
            view = released_view(np.zeros(shape, np.uint8), seed, 16)
            assert view.student.shape == (3, 16, 16)


def test_a_view_is_crop_resize_flip_and_operations():
    image = np.array(photo(500, 375))
    view = released_view(image, 1, 48)
    assert view.student is view.teacher and view.student.dtype == torch.uint8
    expected = Image.fromarray(image).crop((128, 13, 128 + 366, 13 + 282))
    expected = expected.resize((48, 48), Image.Resampling.BICUBIC)
    pixels = np.array(expected)[:, ::-1].astype(int)
    pixels = np.where(pixels < 128, np.minimum(pixels + 101, 255), pixels)
    assert (view.student.permute(1, 2, 0).numpy() == pixels).all()
    assert view.erase_box == scale_box((34, 92, 119, 108), 48) and view.noise_seed == 325552969


def test_a_view_is_the_same_at_every_size_but_for_its_noise():
    image = np.array(photo(500, 375))
    small, large = released_view(image, 1, 224), released_view(image, 1, 384)
    assert (small.erase_box, large.erase_box) == ((34, 92, 119, 108), (58, 158, 204, 185))
    shrunk = torch.nn.functional.interpolate(large.student[None].float(), (224, 224), mode="area")
    assert (shrunk[0] - small.student.float()).abs().mean() < 4  # of 255


def test_all_operations_are_applied_somewhere_and_by_their_right_function():
    image, seen = np.array(photo(64, 48)), {}
    for seed in range(120):
        for each in draw_released(released_generator(seed), 48, 64).operations:
            seen.setdefault(each.name, set()).add(np.sign(each.argument or 0))
        released_view(image, seed, 16)
    assert set(seen) == set(OPERATIONS)
    for name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):
        assert seen[name] == {-1, 1}


def test_erasing_fills_the_box_with_the_released_noise():
    images = torch.full((2, 3, 32, 32), 0.5)
    boxes, seeds = torch.tensor([[2, 3, 4, 5], [0, 0, 0, 0]]), torch.tensor([7, 0])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    erased = erase(images, boxes, seeds, mean, std, released_noise)
    normalised = (erased[0, :, 2:6, 3:8] - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    # Two roundings of float32 to 0..1 and back.
    torch.testing.assert_close(
        normalised, torch.from_numpy(released_noise(7, (3, 4, 5))), atol=1e-6, rtol=1e-5
    )
    assert torch.equal(erased[1], images[1])


def test_boxes_stay_inside_at_every_size():
    for seed in range(200):
        box = draw_released(released_generator(seed), 375, 500).erase_box
        for size in (4, 32, 224, 384, 512):
            top, left, height, width = scale_box(box, size)
            assert 0 <= top <= size - height and 0 <= left <= size - width
