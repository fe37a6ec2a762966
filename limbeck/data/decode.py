"""Bytes of an image file to RGB pixels, whatever the file is; bad files become a BadImage."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg

from limbeck.data.source import BadImage

ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its pixels are decoded."""

    width: int
    height: int
    format: str
    mode: str


def read_header(data: bytes, max_image_pixels: int) -> Header:
    """Size, format and mode of an image file; raises BadImage like ``decode_image``."""
    with warnings.catch_warnings(action="ignore"):
        image = _open(data, max_image_pixels)
    return Header(image.width, image.height, image.format or "unknown", image.mode)


def decode_image(data: bytes, max_image_pixels: int) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8 RGB.

    Transparency is laid on white, 16-bit and floating-point pixels are scaled to 0..255, the EXIF
    orientation is applied, and of an animation the first frame is taken. Raises BadImage for what
    is empty, truncated, corrupt, no image, or larger than ``max_image_pixels``; the size is read
    from the header, before memory is taken.
    """
    # PIL warns of odd metadata, which says nothing about the pixels.
    with warnings.catch_warnings(action="ignore"):
        image = _open(data, max_image_pixels)
        if _is_plain_jpeg(image):
            try:
                encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                # Same libjpeg-turbo as PIL, 1.13 ms instead of 1.52 ms for a photo of 0.2
                # megapixels; the tensor is (3, H, W) over (H, W, 3) memory, so no copy is made.
                return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
            except RuntimeError:
                pass  # PIL has the last word and the better reason.
        try:
            return np.array(_to_rgb(image))
        except Exception as error:  # PIL lets through whatever a broken file provokes.
            raise BadImage(_reason(error)) from error


def decode_as_stored(data: bytes, max_image_pixels: int) -> np.ndarray:
    """Likewise by Pillow's own conversion alone, as most training scripts have it.

    Transparency is dropped, the EXIF orientation ignored, and 16-bit pixels are cut at 255: for
    views whose boxes were drawn in such pixels.
    """
    with warnings.catch_warnings(action="ignore"):
        image = _open(data, max_image_pixels)
        try:
            return np.array(image.convert("RGB"))
        except Exception as error:  # as above
            raise BadImage(_reason(error)) from error


def _open(data: bytes, max_image_pixels: int) -> Image.Image:
    if not data:
        raise BadImage("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError as error:
        raise BadImage("not an image file, or of an unknown format") from error
    except Exception as error:
        raise BadImage(_reason(error)) from error
    if image.width * image.height > max_image_pixels:
        raise BadImage(
            f"{image.width} x {image.height} pixels are more than the limit of {max_image_pixels}"
        )
    return image


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _is_plain_jpeg(image: Image.Image) -> bool:
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return False
    return "exif" not in image.info or image.getexif().get(ORIENTATION_TAG, 1) == 1


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()  # Opening reads the first frame; a later one is never sought.
    image = ImageOps.exif_transpose(image)
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
    scaled = (pixels.astype(np.float64) - stored[0]) / width
    return (scaled * 255).round().astype(np.uint8)
