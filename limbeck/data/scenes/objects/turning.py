"""Annotations of photos that are stored lying, on their upright pixels."""

from pathlib import Path

import numpy as np
from PIL import Image

from limbeck.data.decode import read_header
from limbeck.data.folder import read_image
from limbeck.data.scenes.objects.source import Annotated
from limbeck.data.scenes.pixels import SAME_SIZE, upright_size
from limbeck.data.source import BadImage
from limbeck.files import open_file

T = Image.Transpose
START_BYTES = 2**15  # most headers are in the first of them
MIRRORED_X = (T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.ROTATE_270, T.TRANSVERSE)
MIRRORED_Y = (T.FLIP_TOP_BOTTOM, T.ROTATE_180, T.ROTATE_90, T.TRANSVERSE)
"""Of the upright image: rows and columns are exchanged first, then mirrored."""


def size_of_file(file: Path, max_pixels: int) -> tuple[int, int]:
    """(H, W) of an image file as it is shown, of which its start alone is read where that tells.

    Raises BadImage.
    """
    try:
        with open_file(file) as stream:
            start = stream.read(START_BYTES)
        return upright_size(start, max_pixels)
    except (OSError, BadImage):
        return upright_size(read_image(file), max_pixels)


def turned(
    found: Annotated, size: tuple[int, int], data: bytes, pixels: np.ndarray, max_pixels: int
) -> Annotated:
    """Objects that were annotated in an image of ``size`` (H, W), on its upright ``pixels``.

    A camera's note (EXIF) turns a photo; which of both was annotated tells the size. Raises
    BadImage where it fits neither, and for run lengths in a lying photo.
    """
    upright = pixels.shape[:2]
    if size == upright:
        return found
    header = read_header(data, max_pixels)
    if header.turn in (None, *SAME_SIZE) or size != (header.height, header.width):
        raise BadImage(
            f"its annotation is of {size[1]} x {size[0]} pixels, the image has {upright[1]} x "
            f"{upright[0]}"
        )
    if any(isinstance(shape, dict) for shape in found.shapes):
        raise BadImage("its masks are run lengths of the photo as it was stored, lying")
    turn = header.turn

    def move(points: np.ndarray) -> np.ndarray:
        points = points[:, ::-1]  # rows and columns exchanged
        if turn in MIRRORED_X:
            points = points * (-1, 1) + (upright[1], 0)
        if turn in MIRRORED_Y:
            points = points * (1, -1) + (0, upright[0])
        return points

    corners = np.stack([move(found.boxes[:, :2]), move(found.boxes[:, 2:])])
    boxes = np.concatenate([corners.min(0), corners.max(0)], 1)
    shapes = tuple(
        shape and [move(np.reshape(each, (-1, 2))).ravel().tolist() for each in shape]
        for shape in found.shapes
    )
    return found._replace(boxes=boxes, shapes=shapes)
