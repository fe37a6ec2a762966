"""The 15 corruptions: known values, order of severity, and what they may not depend on."""

import colorsys
import io
from hashlib import blake2b

import numpy as np
import pytest
from PIL import Image

from limbeck.data.corruptions import APPLY, CIFAR, IMAGENET, brightness, corrupt, disk, ice
from limbeck.data.options import CORRUPTIONS, CorruptionOptions
from limbeck.data.views import eval_view
from limbeck.errors import UserError
from tests.data.images import photo

# Their published parameters do not rise in all respects, or what is drawn outweighs them.
UNORDERED = {"glass_blur", "elastic_transform", "frost", "fog", "snow", "motion_blur"}
SMALL = np.array(photo(32, 32))


def grain(size):
    """A picture with fine and coarse structure, as photos have it."""
    rng = np.random.default_rng(1)
    coarse = np.array(photo(size, size), dtype=float)
    return (coarse + rng.normal(0, 12, (size, size, 3))).clip(0, 255).astype(np.uint8)


def distance(image, other):
    return float(np.sqrt(np.square(image.astype(float) - other).mean()))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [32, 112])
def test_shape_and_type_stay_and_the_image_changes(name, size):
    image = grain(size)
    before = image.copy()
    for severity in (1, 3, 5):
        corrupted = corrupt(image, name, severity, "a")
        assert corrupted.shape == image.shape and corrupted.dtype == np.uint8
        assert distance(image, corrupted) > 0.5
    assert (image == before).all()


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in UNORDERED])
@pytest.mark.parametrize("size", [32, 112])
def test_each_severity_is_farther_from_the_image(name, size):
    image = grain(size)
    distances = [
        np.mean([distance(image, corrupt(image, name, level, key)) for key in "abcdef"])
        for level in range(1, 6)
    ]
    assert all(np.diff(distances) > 0), distances


@pytest.mark.parametrize("name", ["frost", "snow", "fog", "motion_blur"])
def test_of_the_others_the_severest_is_farther_than_the_mildest(name):
    image = grain(32)
    mildest, severest = (
        np.mean([distance(image, corrupt(image, name, level, key)) for key in "abcdefgh"])
        for level in (1, 5)
    )
    assert severest > 1.1 * mildest


def test_severities_on_a_real_photo(real_photos):
    image = eval_view(np.array(Image.open(real_photos[0])), 224, 1.0)
    image = image.permute(1, 2, 0).numpy()
    for name in ("gaussian_noise", "defocus_blur", "contrast", "jpeg_compression", "zoom_blur"):
        distances = [distance(image, corrupt(image, name, level, "a")) for level in range(1, 6)]
        assert distances == sorted(distances), name


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_by_its_own_name_alone(name):
    first = corrupt(SMALL, name, 3, "a")
    np.random.seed(0)
    corrupt(SMALL, name, 2, "a")
    corrupt(SMALL, name, 3, "b")
    assert (corrupt(SMALL, name, 3, "a") == first).all()


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"]
)
def test_another_name_is_another_draw(name):
    assert (corrupt(SMALL, name, 3, "a") != corrupt(SMALL, name, 3, "b")).any()


def test_tables_have_five_severities_of_all():
    for table in (CIFAR, IMAGENET):
        assert tuple(table) == CORRUPTIONS == tuple(APPLY)
        assert all(len(parameters) == 5 for parameters in table.values())


def test_tables_are_those_of_the_released_code():
    """Read against it number by number; who changes one changes the benchmark."""
    digest = blake2b(repr((CIFAR, IMAGENET)).encode(), digest_size=8).hexdigest()
    assert digest == "4d43b051b8270317"


def test_larger_images_get_imagenet_s_severities():
    gray = np.full((100, 100, 3), 128, np.uint8)
    noise = corrupt(gray, "gaussian_noise", 1, "a").astype(float) - 128
    assert noise.std() / 255 == pytest.approx(0.08, rel=0.02)
    noise = corrupt(gray[:80, :80], "gaussian_noise", 1, "a").astype(float) - 128
    assert noise.std() / 255 == pytest.approx(0.04, rel=0.02)


def test_known_noise():
    gray = np.full((84, 84, 3), 102, np.uint8)  # 0.4
    shot = corrupt(gray, "shot_noise", 3, "a") / 255
    assert shot.mean() == pytest.approx(0.4, abs=0.002)
    assert shot.std() == pytest.approx((0.4 / 100) ** 0.5, rel=0.03)
    hit = corrupt(gray, "impulse_noise", 5, "a")
    assert set(np.unique(hit)) == {0, 102, 255}
    assert (hit != 102).mean() == pytest.approx(0.07, rel=0.05)
    assert (hit == 0).sum() == pytest.approx((hit == 255).sum(), rel=0.15)


def test_contrast_draws_to_each_channel_s_mean():
    image = SMALL / 255
    mean = image.mean(axis=(0, 1))
    expected = (mean + 0.3 * (image - mean)) * 255
    assert np.abs(corrupt(SMALL, "contrast", 4, "a") - expected).max() <= 0.5 + 1e-6


def test_brightness_is_more_value_of_the_same_hue_and_saturation():
    colors = np.array([[[0.0, 0.0, 0.0], [0.2, 0.5, 0.1], [0.9, 0.3, 0.3]]] * 3)
    brighter = brightness(colors, 0.2, np.random.default_rng(0))
    for color, found in zip(colors[0], brighter[0], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*color)
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))
        assert found == pytest.approx(expected)


def test_jpeg_and_pixelate_are_pillow_s():
    image = Image.fromarray(SMALL)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=58)
    assert (corrupt(SMALL, "jpeg_compression", 3, "a") == np.array(Image.open(file))).all()
    box = Image.Resampling.BOX
    small = image.resize((20, 20), box).resize((32, 32), box)  # int(0.65 * 32)
    assert (corrupt(SMALL, "pixelate", 5, "a") == np.array(small)).all()


@pytest.mark.parametrize("parameters", [*CIFAR["defocus_blur"], *IMAGENET["defocus_blur"]])
def test_a_disk_sums_to_one_and_is_symmetric(parameters):
    weights = disk(*parameters)
    # Of the two largest the window of the released code cuts the edge, and mirrors it.
    more = {(8, 0.5): 0.012975, (10, 0.5): 0.010786}.get(parameters, 0)
    assert weights.sum() == pytest.approx(1 + more, abs=1e-6)
    assert np.allclose(weights, weights.T) and np.allclose(weights, weights[::-1])
    assert weights[len(weights) // 2, len(weights) // 2] == weights.max()


@pytest.mark.parametrize(("radius", "reach", "half"), [(6, 8, 1), (8, 8, 1), (10, 10, 2)])
def test_a_disk_is_smoothed_within_the_window_of_the_released_code(radius, reach, half):
    """OpenCV's Gaussian filter by hand: at a border it goes on with the mirrored window."""
    places = range(-reach, reach + 1)
    plain = np.array([[float(x * x + y * y <= radius**2) for x in places] for y in places])
    plain /= plain.sum()
    line = np.exp(-0.5 * (np.arange(-half, half + 1) / 0.5) ** 2)
    line /= line.sum()
    size, expected = 2 * reach + 1, np.zeros_like(plain)
    mirrored = [*range(half, 0, -1), *range(size), *range(size - 2, size - 2 - half, -1)]
    for row in range(size):
        for column in range(size):
            window = plain[np.ix_(mirrored[row : row + 2 * half + 1],
                                  mirrored[column : column + 2 * half + 1])]  # fmt: skip
            expected[row, column] = line @ window @ line
    found = disk(radius, 0.5)
    margin = (size - len(found)) // 2
    assert np.allclose(np.pad(found, margin), expected, atol=1e-12)


def test_fog_keeps_the_range_of_the_image():
    image = (SMALL // 2).astype(np.uint8)
    assert corrupt(image, "fog", 5, "a").max() <= image.max()


def test_what_is_left_where_nothing_is_drawn():
    rng, image = np.random.default_rng(0), SMALL / 255
    no_flakes = (0.1, 0.2, 1, 99, 8, 3, 0.95)
    white = np.maximum(image, (image @ [0.299, 0.587, 0.114])[..., None] * 1.5 + 0.5)
    assert np.allclose(APPLY["snow"](image, no_flakes, rng), 0.95 * image + 0.05 * white)
    assert np.allclose(APPLY["frost"](image, (0.8, 0), rng), 0.8 * image)
    assert np.allclose(APPLY["elastic_transform"](image, (0, 0, 0), rng), image)
    for name, parameters in (("motion_blur", (6, 2)), ("zoom_blur", (1.26, 0.01))):
        assert np.allclose(APPLY[name](np.full((32, 32, 3), 0.3), parameters, rng), 0.3)


def test_an_elastic_image_shifts_where_its_corners_move_alike():
    """Corners that move to the right take the picture with them."""

    class OneShift:
        def uniform(self, low, high, size):
            return np.full(size, high) * [1, 0] if size == (3, 2) else np.zeros(size)

    shifted = APPLY["elastic_transform"](SMALL / 255, (0, 0, 0.0625), OneShift())  # of 32: 2
    assert np.allclose(shifted[:, 2:], SMALL[:, :-2] / 255)


def test_fog_is_thickest_where_the_clouds_are_brightest():
    gray = np.full((32, 32, 3), 0.5)
    foggy = APPLY["fog"](gray, (1.5, 1.75), np.random.default_rng(0))
    assert foggy.max() == pytest.approx(0.5)
    assert foggy.min() == pytest.approx(0.5 * 0.5 / (0.5 + 1.5))


def test_motion_is_rather_level_and_snow_falls():
    point = np.zeros((63, 63, 3))
    point[31, 31] = 1
    for seed in range(5):
        smeared = APPLY["motion_blur"](point, (10, 8), np.random.default_rng(seed))
        rows, columns = np.nonzero(smeared[..., 0])
        assert np.ptp(columns) >= np.ptp(rows)
        flakes = (0.1, 0.3, 1, 0.9, 10, 8, 1)
        fallen = APPLY["snow"](np.zeros((63, 63, 3)), flakes, np.random.default_rng(seed))[..., 0]
        assert np.abs(np.diff(fallen, axis=0)).mean() < np.abs(np.diff(fallen, axis=1)).mean()


def test_glass_takes_pixels_from_the_neighbourhood():
    """Far from any edge nothing can change, since all neighbours are alike."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 255
    shattered = corrupt(image, "glass_blur", 1, "a")
    assert (shattered != image).any()
    assert (shattered[:, :12] == 0).all() and (shattered[:, 31:] == 255).all()
    assert set(np.unique(shattered)) == {0, 255}


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [8, 33])
@pytest.mark.parametrize("value", [0, 255])
def test_odd_sizes_and_flat_images_are_no_exception(name, size, value):
    image = np.full((size, size, 3), value, np.uint8)
    for severity in (1, 5):
        assert corrupt(image, name, severity, "a").shape == image.shape


def test_the_draws_are_the_same_in_every_process():
    """A number from another process: nothing follows from Python's hashes, which differ."""
    image = np.full((4, 4, 3), 128, np.uint8)
    assert corrupt(image, "gaussian_noise", 1, "a")[0, 0].tolist() == [143, 113, 125]


def test_ice_is_in_range_bluish_and_not_flat():
    pane = ice(64, np.random.default_rng(0))
    assert pane.min() >= 0 and pane.max() <= 1
    assert pane[..., 2].mean() > pane[..., 0].mean()
    assert pane.std() > 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"names": ("fogg",)}, "There is no corruption 'fogg'. Did you mean 'fog'?"),
        ({"names": ("all", "fog")}, "all and none stand alone"),
        ({"names": ("all",), "severities": (6,)}, "severities are one or more of 1, 2, 3, 4 and 5"),
        ({"names": ("all",), "severities": ()}, "severities are one or more of"),
        ({"severities": (1,)}, "corruptions.severities has no effect without --corruptions"),
        ({"names": ("none",), "root": "x"}, "corruptions.root has no effect without"),
        ({"names": ("all",), "num_images": 0}, "num_images"),
    ],
)
def test_what_the_options_refuse(values, message):
    with pytest.raises(UserError) as caught:
        CorruptionOptions(**values)
    assert message in str(caught.value)


def test_what_is_wanted():
    assert CorruptionOptions().wanted == CorruptionOptions(names=("none",)).wanted == ()
    assert CorruptionOptions(names=("all",)).wanted == CORRUPTIONS
    some = CorruptionOptions(names=("fog", "shot_noise"), severities=(5, 1, 5))
    assert some.wanted == ("shot_noise", "fog") and some.levels == (1, 5)
