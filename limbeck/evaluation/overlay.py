"""Maps of classes and boxes as pictures: colours, index PNGs, and both drawn into images."""

import colorsys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from limbeck.files import printable

SWATCH = 14  # pixels of a line of the legend
LEAST_SIDE = 320  # pixels of the longer side of a picture with boxes
GOLDEN = 0.618033988749895
FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "arial.ttf", "Arial.ttf")
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@cache
def font(size: int) -> Font:
    """One of the system's with more than English letters, or else Pillow's own."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def palette(num_classes: int) -> np.ndarray:
    """A colour (C, 3) uint8 for each class; neighbours are far from each other."""
    colors = [
        colorsys.hsv_to_rgb(
            index * GOLDEN % 1, (0.85, 0.55)[index // 7 % 2], (0.95, 0.7)[index % 2]
        )
        for index in range(num_classes)
    ]
    return np.round(255 * np.array(colors)).astype(np.uint8)


def index_image(found: Tensor, colors: np.ndarray) -> Image.Image:
    """A map (H, W) of at most 256 classes as a PNG's content: indices, with colours to look at."""
    image = Image.fromarray(found.numpy().astype(np.uint8))
    image.putpalette(colors.tobytes())  # the pixels stay indices
    return image


def draw_map(
    image: np.ndarray, found: Tensor, colors: np.ndarray, names: list[str], opacity: float,
    num_lines: int = 0,
) -> Image.Image:  # fmt: skip
    """The image (H, W, 3) uint8 under its map (H, W), and a legend of the classes that are in it,
    the largest first, with room for ``num_lines``."""
    indices = found.numpy()
    mixed = image * (1 - opacity) + colors[indices] * opacity
    picture = Image.fromarray(np.round(mixed).astype(np.uint8))
    counts = np.bincount(indices.ravel(), minlength=len(names))
    shown = [index for index in np.argsort(-counts).tolist() if counts[index]]
    height = picture.height
    whole = Image.new("RGB", (picture.width, height + SWATCH * max(len(shown), num_lines)), "white")
    whole.paste(picture)
    draw = ImageDraw.Draw(whole)
    for place, index in enumerate(shown):
        top = height + SWATCH * place
        draw.rectangle((0, top, SWATCH, top + SWATCH - 1), fill=tuple(colors[index].tolist()))
        share = 100 * counts[index] / counts.sum()
        text = f"{names[index]} {share:.1f} %"
        draw.text((SWATCH + 4, top), text, fill="black", font=font(SWATCH - 3))
    return whole


def draw_boxes(
    image: np.ndarray, found: Sequence[Mapping[str, Any]], colors: Mapping[str, np.ndarray],
    opacity: float, masks: Sequence[np.ndarray] = (),
) -> Image.Image:  # fmt: skip
    """The image (H, W, 3) uint8 with its objects: "class", "score" and "box" (left, top, width,
    height in pixels) each, and ``masks`` (H, W) bool, one each, laid over it; a small one enlarged,
    or names would hide it."""
    pixels = image.astype(np.float32)
    for each, is_inside in zip(found, masks, strict=bool(masks)):
        colour = colors[each["class"]].astype(np.float32)
        pixels[is_inside] = pixels[is_inside] * (1 - opacity) + colour * opacity
    picture = Image.fromarray(np.round(pixels).astype(np.uint8))
    factor = max(1, -(-LEAST_SIDE // max(picture.size)))
    sides = (factor * picture.width, factor * picture.height)
    picture = picture.resize(sides, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    size = max(10, round(max(picture.size) / 45))
    letters, width = font(size), max(1, size // 6)
    for each in reversed(found):  # the surest lies above the others
        left, top, wide, high = (factor * value for value in each["box"])
        colour = tuple(colors[each["class"]].tolist())
        draw.rectangle((left, top, left + wide, top + high), outline=colour, width=width)
    for each in reversed(found):  # no box crosses a name
        left, top, *_ = (factor * value for value in each["box"])
        colour = tuple(colors[each["class"]].tolist())
        text = printable(f"{each['class']} {each['score']:.2f}")
        room = draw.textbbox((0, 0), text, font=letters)
        corner = max(0, min(left, picture.width - room[2])), top - room[3] - 2
        corner = corner if corner[1] >= 0 else (corner[0], top + width)  # above, or else inside
        draw.rectangle(
            (corner[0], corner[1], corner[0] + room[2] + 2, corner[1] + room[3] + 1), fill=colour
        )
        is_light = float(colors[each["class"]] @ (0.299, 0.587, 0.114)) > 140
        ink = "black" if is_light else "white"
        draw.text((corner[0] + 1, corner[1]), text, fill=ink, font=letters)
    return picture
