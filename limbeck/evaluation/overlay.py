"""Maps of classes as pictures: colours, index PNGs, and maps drawn into images."""

import colorsys
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SWATCH = 14  # pixels of a line of the legend
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
