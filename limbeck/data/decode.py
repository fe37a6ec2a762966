"""Bytes of an image file to RGB pixels, whatever the file is; bad files become a BadImage."""

import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from limbeck.data.formats import HEIF_ADVICE, format_of, heif_plugin, open_image
from limbeck.data.source import BadImage

ORIENTATION_TAG = 0x0112
UPRIGHT: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What turns an image of each EXIF orientation upright."""
T = TypeVar("T")
TILE_TAGS = (322, 323)  # width and length, of a TIFF
PNG_START = b"\x89PNG\r\n\x1a\n"


class NotAnImage(BadImage):
    """What is none of the formats that are read."""


class TooManyPixels(BadImage):
    """An image that says to be larger than it may be."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its pixels are decoded.

    ``width`` and ``height`` are as stored; ``turn`` makes the image upright, None if it is so.
    """

    width: int
    height: int
    format: str
    mode: str
    turn: Image.Transpose | None = None


def read_header(data: bytes, max_image_pixels: int) -> Header:
    """Size, format, mode and turn of an image file; raises BadImage like ``decode_image``."""
    return with_pixels(
        data,
        max_image_pixels,
        lambda image: Header(
            image.width, image.height, image.format or "unknown", image.mode, turn_of(image)
        ),
    )


def decode_image(data: bytes, max_image_pixels: int) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8 RGB.

    Transparency is laid on white, 16-bit and floating-point pixels are scaled to 0..255, the EXIF
    orientation is applied, and of an animation the first frame is taken. Raises BadImage for what
    is empty, truncated, corrupt, no image, or larger than ``max_image_pixels``; the size is read
    from the header, before memory is taken.
    """
    return with_pixels(data, max_image_pixels, lambda image: _decode(image, data))


def decode_as_stored(data: bytes, max_image_pixels: int) -> np.ndarray:
    """Likewise by Pillow's own conversion alone, as most training scripts have it.

    Transparency is dropped, the EXIF orientation ignored, and 16-bit pixels are cut at 255: for
    views whose boxes were drawn in such pixels.
    """
    return with_pixels(data, max_image_pixels, lambda image: np.array(image.convert("RGB")))


def with_pixels(data: bytes, max_image_pixels: int, use: Callable[[Image.Image], T]) -> T:
    """What ``use`` makes of the image; pixels count, broken texts and profiles beside them don't.

    Raises BadImage like ``decode_image``, whatever ``use`` meets. Pillow refuses a PNG for the sake
    of those.
    """
    # PIL warns of odd metadata, which says nothing about the pixels.
    with warnings.catch_warnings(action="ignore"):
        try:
            return _use(data, max_image_pixels, use)
        except BadImage:
            bare = _without_metadata(data)
            if bare is None:
                raise
            return _use(bare, max_image_pixels, use)


def _use(data: bytes, max_image_pixels: int, use: Callable[[Image.Image], T]) -> T:
    if not data:
        raise BadImage("the file is empty")
    try:
        image = open_image(data)
        if image.width * image.height > max_image_pixels:
            size = f"{image.width} x {image.height}"
            raise TooManyPixels(f"{size} pixels are more than the limit of {max_image_pixels}")
        if image.format == "TIFF":
            _check_tile(image, data, max_image_pixels)
        return use(image)
    except BadImage:
        raise
    except Image.UnidentifiedImageError as error:
        if format_of(data[:16]) == "HEIF" and heif_plugin() is None:
            raise BadImage(f"a HEIC photo, which needs a plug-in: {HEIF_ADVICE}") from error
        raise NotAnImage("not an image file, or of an unknown format") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, beyond any of ours
        raise TooManyPixels(_reason(error)) from error
    except Exception as error:  # PIL lets through whatever a broken file provokes.
        raise BadImage(_reason(error)) from error


def _check_tile(image: Any, data: bytes, max_image_pixels: int) -> None:
    """A TIFF's tile is decoded whole, however small the image says to be."""
    tags, order = image.tag_v2, "<" if data.startswith(b"II") else ">"
    count, start, entry = ("Q", 8, 20) if 43 in data[2:4] else ("H", 2, 12)
    (number,) = struct.unpack_from(order + count, data, tags.offset)
    places = (tags.offset + start + entry * each for each in range(number))
    found = [struct.unpack_from(order + "H", data, place)[0] for place in places]
    for tag in TILE_TAGS:  # of a repeated one Pillow believes the last, and its decoder the first
        if found.count(tag) != (tag in tags):
            raise BadImage("its tiles have no size, or more than one")
    width, height = (int(tags.get(tag, 0)) for tag in TILE_TAGS)
    if width * height > max_image_pixels:
        raise TooManyPixels(
            f"a tile of {width} x {height} pixels is more than the limit of {max_image_pixels}"
        )


def _without_metadata(data: bytes) -> bytes | None:
    """A PNG without texts, profiles and the like; None for what is none, or has none of them."""
    if not data.startswith(PNG_START):
        return None
    kept, place = [PNG_START], len(PNG_START)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        # A capital letter: without it there is no picture. Transparency and orientation stay, too.
        is_whole = data[end - 4 : end] == struct.pack(">I", zlib.crc32(data[place + 4 : end - 4]))
        if kind[:1].isupper() or (kind in (b"tRNS", b"eXIf") and is_whole):
            kept.append(data[place:end])
        place = end
    bare = b"".join(kept)
    return bare if len(bare) < len(data) else None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _is_plain_jpeg(image: Image.Image) -> bool:
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return False
    return "exif" not in image.info or _orientation(image) == 1


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What makes an opened image upright, by its metadata; None if it is so."""
    return UPRIGHT.get(_orientation(image))


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # PIL again; the pixels are sound.
        return 1


def _decode(image: Image.Image, data: bytes) -> np.ndarray:
    if _is_plain_jpeg(image):
        try:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            # Same libjpeg-turbo as PIL, 1.13 ms instead of 1.52 ms for a photo of 0.2
            # megapixels; the tensor is (3, H, W) over (H, W, 3) memory, so no copy is made.
            return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
        except RuntimeError:
            pass  # PIL has the last word and the better reason.
    return np.array(_to_rgb(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()  # Opening reads the first frame; a later one is never sought.
    turn = turn_of(image)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode[0] in "IF":
        return Image.fromarray(_scale_to_bytes(np.array(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _scale_to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Grey pixels of more than 8 bits to 0..255, by the range that they are most likely stored in.

    Integers are 16-bit, but 32-bit ones and floats up to 255 are 0..255, and floats up to 1 are
    0..1; anything beyond has no agreed range and is stretched from its minimum to its maximum.
    """
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise BadImage("it has pixels that are not finite")
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype.kind == "f":
        stored = (0.0, 1.0) if high <= 1 else (0.0, 255.0)
    else:
        is_bytes = pixels.dtype.itemsize > 2 and high <= 255
        stored = (0.0, 255.0) if is_bytes else (0.0, 65535.0)
    if low < stored[0] or high > stored[1]:
        stored = (low, high)
    width = (stored[1] - stored[0]) or 1.0  # one single value
    scaled = pixels.astype(np.float64)
    for change, value in ((np.subtract, stored[0]), (np.divide, width), (np.multiply, 255)):
        change(scaled, value, out=scaled)  # in place: it is eight times as large as the image
    return scaled.round(out=scaled).astype(np.uint8)
