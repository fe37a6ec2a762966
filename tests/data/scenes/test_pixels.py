import numpy as np
import pytest
from PIL import Image

from limbeck.data.decode import UPRIGHT
from limbeck.data.scenes.pixels import decode_mask, decode_pair, fitted
from limbeck.data.source import BadImage
from tests.data.images import encode, photo
from tests.data.scenes.sets import with_palette

LIMIT = 10_000
VALUES = np.array([[0, 1, 2], [7, 254, 255]], np.uint8)


def raw(image, format="PNG", **options):
    return decode_mask(encode(image, format, **options), LIMIT)


def test_values_are_left_as_they_are():
    for image in (Image.fromarray(VALUES), Image.fromarray(VALUES.astype(np.uint16))):
        assert np.array_equal(raw(image).pixels, VALUES)
    wide = np.array([[300, 65535]], np.uint16)
    assert np.array_equal(raw(Image.fromarray(wide)).pixels, wide)


def test_floats_are_values_where_they_are_whole():
    whole = np.array([[0, 3], [255, 9]], np.float32)
    assert np.array_equal(raw(Image.fromarray(whole), "TIFF").pixels, whole)
    for odd in (0.5, np.nan):
        with pytest.raises(BadImage, match="no whole numbers"):
            raw(Image.fromarray(np.full((2, 2), odd, np.float32)), "TIFF")


def test_a_palette_gives_no_colours_to_the_values():
    found = raw(with_palette(VALUES, lambda v: (v, 3, 9)))
    assert np.array_equal(found.pixels, VALUES)
    assert found.colours()[1, 0] == 7 * 65536 + 3 * 256 + 9


def test_a_grey_palette_stands_for_its_greys():
    found = raw(with_palette(VALUES % 3, lambda v: (100 * (v % 3),) * 3))
    assert found.palette is None
    assert np.array_equal(found.pixels, VALUES % 3 * 100)


def test_black_and_white_of_one_bit():
    found = raw(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"))
    assert found.pixels.tolist() == [[0, 1]]


def test_transparency_is_left_out():
    grey = Image.merge("LA", [Image.fromarray(VALUES), Image.fromarray(VALUES)])
    assert np.array_equal(raw(grey).pixels, VALUES)
    colours = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    found = raw(Image.fromarray(colours))
    assert found.is_colour and np.array_equal(found.pixels, colours[..., :3])


def test_colours_and_what_is_grey_of_them():
    assert not raw(Image.fromarray(np.stack([VALUES] * 3, -1))).is_colour
    found = raw(Image.fromarray(VALUES))
    assert found.colours()[1].tolist() == [7 * 65793, 254 * 65793, 255 * 65793]
    assert raw(photo(), "JPEG").is_blurred


def test_no_mask():
    with pytest.raises(BadImage, match="the file is empty"):
        decode_mask(b"", LIMIT)
    with pytest.raises(BadImage, match="limit of 5"):
        decode_mask(encode(Image.fromarray(VALUES), "PNG"), 5)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_mask_of_the_stored_pixels_is_turned_with_them(orientation):
    """What lies on one corner of the stored photo lies there on the upright one, too."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((8, 12), np.uint8)
    stored[:3, :5] = 1
    image = encode(Image.fromarray(np.stack([stored * 255] * 3, -1)), "PNG", exif=exif)
    labels = stored
    if UPRIGHT[orientation] in (0, 1, 3):  # the size does not tell: it is the upright one's
        labels = np.array(Image.fromarray(stored).transpose(UPRIGHT[orientation]))
    pixels, found = decode_pair(image, labels, LIMIT)
    assert np.array_equal(pixels[..., 0] == 255, found == 1)
    assert np.array_equal(fitted(labels, image, LIMIT), found)


def test_another_size_is_refused():
    image = encode(photo(12, 8))
    for labels in (np.zeros((12, 8), np.uint8), np.zeros((4, 6), np.uint8)):
        with pytest.raises(BadImage, match=r"its mask has \d+ x \d+ pixels, the image 12 x 8"):
            decode_pair(image, labels, LIMIT)
