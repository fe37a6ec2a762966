"""A mask's file to its raw values: class indices, or colours, that no program has touched.

Masks are never read as photos are: a palette is not laid on, 16 bits are not scaled, nothing is
smoothed. What the values mean is for ``limbeck.data.scenes.coding``.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from limbeck.data.decode import decode_image, read_header, turn_of, with_pixels
from limbeck.data.source import BadImage

PACK = np.array([65536, 256, 1], np.int32)
SAME_SIZE = (
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180,
)  # fmt: skip


@dataclass(frozen=True)
class RawMask:
    """``pixels``: (H, W) whole numbers, or colours (H, W, 3) uint8.

    ``palette`` (K, 3) uint8 gives the colour of each value where the file has one that is not
    grey. ``is_blurred``: it was compressed with loss, so the values are about right only.
    """

    pixels: np.ndarray
    palette: np.ndarray | None = None
    is_blurred: bool = False

    @property
    def is_colour(self) -> bool:
        """Whether the file has no values but colours."""
        return self.pixels.ndim == 3

    def colours(self) -> np.ndarray:
        """The mask as colours packed into one number each, red highest: (H, W) int32."""
        pixels = self.pixels
        if self.palette is not None:
            table = np.zeros((256, 3), np.int32)
            table[: len(self.palette)] = self.palette
            return (table @ PACK)[pixels]
        return pixels.astype(np.int32) @ PACK if self.is_colour else pixels.astype(np.int32) * 65793


def decode_mask(data: bytes, max_image_pixels: int) -> RawMask:
    """The raw values of a mask's file; raises BadImage for what is none.

    A grey palette stands for its greys, and colours that are all grey are values.
    """
    return with_pixels(data, max_image_pixels, _decode)


def _decode(image: Image.Image) -> RawMask:
    is_blurred = image.format in ("JPEG", "MPO")
    image.load()
    turn = turn_of(image)
    palette = None
    if image.mode == "PA":
        image = image.convert("P")
    elif image.mode in ("LA", "La"):
        image = image.convert("L")
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    elif image.mode not in ("1", "L") and image.mode[0] not in "IF":
        image = image.convert("RGB")
    if turn is not None:
        image = image.transpose(turn)
    pixels = np.array(image)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    elif pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all() or (pixels != np.rint(pixels)).any():
            raise BadImage("it has values that are no whole numbers")
        pixels = pixels.astype(np.int64)
    if palette is not None and _is_grey(palette) and pixels.max() < len(palette):
        return RawMask(palette[:, 0][pixels], None, is_blurred)
    if pixels.ndim == 3 and _is_grey(pixels):
        pixels = pixels[:, :, 0]
    return RawMask(pixels, palette, is_blurred)


def _is_grey(colours: np.ndarray) -> bool:
    red, green, blue = np.moveaxis(colours, -1, 0)
    return bool((red == green).all() and (green == blue).all())


def fitted(labels: np.ndarray, image: bytes, max_image_pixels: int) -> np.ndarray:
    """A label map as it lies on the upright image of a file.

    Photos that a camera held sideways are stored lying, with a note (EXIF) to turn them; a mask may
    have been drawn on the one or the other, and its size tells. Raises BadImage where it fits
    neither.
    """
    header = read_header(image, max_image_pixels)
    stored = (header.height, header.width)
    upright = upright_size(image, max_image_pixels)
    if labels.shape == upright:
        return labels
    if labels.shape == stored and header.turn is not None:
        return np.array(Image.fromarray(labels).transpose(header.turn))
    raise BadImage(
        f"its mask has {labels.shape[1]} x {labels.shape[0]} pixels, the image {upright[1]} x "
        f"{upright[0]}"
    )


def upright_size(data: bytes, max_image_pixels: int) -> tuple[int, int]:
    """(H, W) of an image file as it is seen; raises BadImage for what is none."""
    header = read_header(data, max_image_pixels)
    if header.turn is not None and header.turn not in SAME_SIZE:
        return header.width, header.height
    return header.height, header.width


def decode_pair(
    image: bytes, labels: np.ndarray, max_image_pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    """The upright pixels of an image and the label map on them; raises BadImage likewise."""
    pixels = decode_image(image, max_image_pixels)
    if labels.shape != pixels.shape[:2]:
        labels = fitted(labels, image, max_image_pixels)
    return pixels, labels
