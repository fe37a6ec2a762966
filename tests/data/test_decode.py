import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from limbeck.data.decode import (
    ORIENTATION_TAG,
    Header,
    NotAnImage,
    TooManyPixels,
    decode_as_stored,
    decode_image,
    read_header,
)
from limbeck.data.source import BadImage
from tests.data.images import encode, photo

LIMIT = 1_000_000


def close(pixels: np.ndarray, image: Image.Image, tolerance: float = 4) -> bool:
    """Mean difference of a lossy copy."""
    expected = np.asarray(image.convert("RGB"), dtype=float)
    return pixels.shape == expected.shape and abs(pixels - expected).mean() < tolerance


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_common_formats(format, mode):
    image = photo().convert(mode)
    pixels = decode_image(encode(image, format), LIMIT)
    assert pixels.dtype == np.uint8
    assert close(pixels, image)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_fast_jpeg_path_gives_the_pixels_of_pil(options, mode):
    image = photo(61, 47).convert(mode)
    data = encode(image, quality=80, **options)
    by_pil = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, LIMIT), by_pil)


def test_fast_path_gives_the_pixels_of_pil_on_real_photos(real_photos):
    for file in real_photos:
        by_pil = np.asarray(Image.open(file).convert("RGB"))
        np.testing.assert_array_equal(decode_image(file.read_bytes(), 10**8), by_pil)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation, format):
    image = photo()
    upright = {
        1: image,
        2: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: image.rotate(180),
        4: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: image.transpose(Image.Transpose.TRANSPOSE),
        6: image.rotate(-90, expand=True),
        7: image.transpose(Image.Transpose.TRANSVERSE),
        8: image.rotate(90, expand=True),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    assert close(decode_image(encode(image, format, exif=exif), LIMIT), upright)


def test_transparency_is_laid_on_white():
    image = photo(8, 4).convert("RGBA")
    image.putalpha(0)
    image.putpixel((0, 0), (10, 20, 30, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    pixels = decode_image(encode(image, "PNG"), LIMIT)
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert pixels[0, 1].tolist() == [127, 127, 127]
    assert (pixels[1:] == 255).all()


def test_grey_with_transparency():
    image = Image.new("LA", (3, 2), (40, 0))
    image.putpixel((0, 0), (40, 255))
    pixels = decode_image(encode(image, "PNG"), LIMIT)
    assert pixels[0, 0].tolist() == [40] * 3 and pixels[1, 2].tolist() == [255] * 3


@pytest.mark.parametrize(
    ("format", "transparency"), [("PNG", 0), ("PNG", b"\x00\xff\xff"), ("GIF", 0)]
)
def test_palette_with_transparency(format, transparency):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 250])
    image.putpixel((1, 0), 1)
    image.putpixel((2, 0), 2)
    pixels = decode_image(encode(image, format, transparency=transparency), LIMIT)
    assert pixels[0, :3].tolist() == [[255, 255, 255], [200, 0, 0], [0, 0, 250]]


def test_palette_without_transparency():
    image = photo().quantize(16)
    np.testing.assert_array_equal(
        decode_image(encode(image, "PNG"), LIMIT), np.asarray(image.convert("RGB"))
    )


def test_one_bit():
    image = photo().convert("1")
    pixels = decode_image(encode(image, "PNG"), LIMIT)
    assert set(np.unique(pixels)) == {0, 255}
    np.testing.assert_array_equal(pixels[..., 0] > 0, np.asarray(image))


def test_inverted_cmyk_jpeg_and_plain_cmyk_tiff():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    adobe_jpeg = encode(image, "JPEG", quality=95)
    assert b"Adobe" in adobe_jpeg
    for data in (adobe_jpeg, encode(image, "TIFF")):
        red, green, blue = decode_image(data, LIMIT)[8, 8].tolist()
        assert red > 230 and green < 40 and blue < 40


@pytest.mark.parametrize(
    ("array", "format", "expected"),
    [
        (np.array([[0, 32768, 65535]], np.uint16), "PNG", [0, 128, 255]),
        (np.array([[0, 32768, 65535]], np.uint16), "TIFF", [0, 128, 255]),
        (np.array([[0, 32768, 65535]], np.int32), "TIFF", [0, 128, 255]),
        (np.array([[0, 128, 255]], np.int32), "TIFF", [0, 128, 255]),
        (np.array([[0, 128, 257]], np.uint16), "TIFF", [0, 0, 1]),
        (np.array([[-100, 0, 100]], np.int32), "TIFF", [0, 128, 255]),
        (np.array([[0, 10**6, 2 * 10**6]], np.int32), "TIFF", [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), "TIFF", [0, 128, 255]),
        (np.array([[0, 128, 255]], np.float32), "TIFF", [0, 128, 255]),
        (np.array([[-2, 0, 2]], np.float32), "TIFF", [0, 128, 255]),
        (np.array([[5, 5, 5]], np.float32), "TIFF", [5, 5, 5]),
    ],
)
def test_deep_pixels_are_scaled(array, format, expected):
    pixels = decode_image(encode(Image.fromarray(array), format), LIMIT)
    assert pixels[0].tolist() == [[value] * 3 for value in expected]


def test_a_constant_image_of_no_known_range_is_black():
    image = Image.fromarray(np.full((2, 2), -7, np.int32))
    assert (decode_image(encode(image, "TIFF"), LIMIT) == 0).all()


def test_sixteen_bit_colour_png():
    rows = np.array([[[0, 32768, 65535], [65535, 0, 257]]], ">u2")
    pixels = decode_image(png(2, 1, 16, 2, b"\0" + rows.tobytes()), LIMIT)
    assert pixels[0].tolist() == [[0, 128, 255], [255, 0, 1]]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame(format):
    first, second = photo(seed=1), photo(seed=2)
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(first, format, save_all=True, append_images=[second], **options)
    pixels = decode_image(data, LIMIT).astype(float)
    assert abs(pixels - np.asarray(first)).mean() < 8 < abs(pixels - np.asarray(second)).mean()


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """A PNG file from its parts, to lie in the header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_bad_files_say_why():
    cases = {
        b"": "empty",
        b"no image at all": "not an image",
        encode(photo())[:-300]: "(?i)truncated",
        encode(photo(), "PNG")[:-300]: ".",
        encode(photo(), "TIFF")[:-300]: ".",
        encode(photo())[:30]: ".",
        png(20_000, 20_000, 8, 2, b""): "pixels",
        png(2_000, 2_000, 8, 2, b""): "2000 x 2000 pixels are more than the limit",
        encode(Image.fromarray(np.array([[np.nan, 1]], np.float32)), "TIFF"): "not finite",
    }
    for data, reason in cases.items():
        with pytest.raises(BadImage, match=reason) as caught:
            decode_image(data, LIMIT)
        assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damaged_files_are_read_or_refused_and_nothing_else(format):
    rng = np.random.default_rng(0)
    data = encode(photo(), format)
    refused = 0
    for _ in range(40):
        damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = rng.integers(256)
        try:
            assert decode_image(bytes(damaged), LIMIT).dtype == np.uint8
        except BadImage as error:
            refused += 1
            assert str(error)
    assert refused > 10


def test_header():
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    data = encode(photo(48, 40), exif=exif)
    turn = Image.Transpose.ROTATE_270
    assert read_header(data, LIMIT) == Header(48, 40, "JPEG", "RGB", turn)
    assert read_header(encode(photo(48, 40)), LIMIT) == Header(48, 40, "JPEG", "RGB")
    with pytest.raises(BadImage, match="limit of 100"):
        read_header(data, 100)


def test_pixels_may_be_written_to():
    for format in ("JPEG", "PNG"):
        assert decode_image(encode(photo(), format), LIMIT).flags.writeable


def test_as_stored_is_pillow_s_own_conversion():
    clear = Image.new("RGBA", (4, 3), (10, 20, 30, 0))
    for image, kind in [(clear, "PNG"), (photo(9, 7), "JPEG"), (photo(9, 7).convert("L"), "PNG")]:
        data = encode(image, kind)
        expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        assert (decode_as_stored(data, 10**6) == expected).all()
    assert (decode_as_stored(encode(clear, "PNG"), 10**6) == (10, 20, 30)).all()
    for data in (b"", b"no image", encode(photo(64, 64))[:300]):
        with pytest.raises(BadImage):
            decode_as_stored(data, 10**6)
    with pytest.raises(BadImage, match="more than the limit"):
        decode_as_stored(encode(photo(64, 64)), 100)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (png(20_000, 20_000, 8, 2, b""), TooManyPixels),
        (png(2_000, 2_000, 8, 2, b""), TooManyPixels),
        (b"no image", NotAnImage),
        (b"PK", NotAnImage),
        (b"", BadImage),
        (encode(photo())[:300], BadImage),
    ],
)
def test_what_is_wrong_with_it_is_a_kind_of_error(data, kind):
    with pytest.raises(BadImage) as error:
        decode_image(data, 10**6)
    assert type(error.value) is kind


@pytest.mark.parametrize(("order", "is_big"), [("<", False), (">", False), ("<", True)])
def test_a_tiff_whose_tiles_are_larger_than_it_says(order, is_big):
    def tiff(*tiles):
        entries = [(256, 1), (257, 1), (258, 8), (259, 8), (262, 1), (277, 1), *tiles, (325, 9)]
        head, values, entry = "HIH", (42, 8), "HHII"
        if is_big:
            head, values, entry = "HHHQQ", (43, 8, 0, 16), "HHQI4x"
        data = (b"II" if order == "<" else b"MM") + struct.pack(order + head, *values, len(entries))
        rows = [struct.pack(order + entry, tag, 4, 1, value) for tag, value in entries]
        return data + b"".join(rows) + bytes(8)

    with pytest.raises(TooManyPixels, match="tile of 2000 x 501"):
        read_header(tiff((322, 2000), (323, 501)), LIMIT)
    assert read_header(tiff((322, 2000), (323, 500)), LIMIT).format == "TIFF"
    assert read_header(tiff(), LIMIT).format == "TIFF"
    with pytest.raises(BadImage, match="more than one"):
        read_header(tiff((322, 2000), (323, 501), (322, 16), (323, 16)), LIMIT)
