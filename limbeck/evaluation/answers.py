"""What a network says of images, without any file: classes, nearest images, and both as pictures.

Maps of classes are drawn by ``overlay.py``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from limbeck.errors import NotFiniteError
from limbeck.evaluation.neighbours import nearest
from limbeck.evaluation.overlay import Font, font
from limbeck.files import printable
from limbeck.models.encoder import EncoderFacts

SMALLEST, LARGEST = 224, 1024  # pixels of the longer side of a picture to look at
BAR, REST = "#2f8f6b", "#e4e4e4"


def class_names(facts: EncoderFacts) -> list[str]:
    """The classes that a network knows, each under a name of its own, by index; numbers where it
    was told none."""
    names = [str(name) for name in facts.origin.get("classes") or range(facts.num_classes)]
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{name} (class {i})" for i, name in enumerate(names)
    ]  # of ImageNet's 1,000 names two stand for two classes each


def likeliest(logits: Tensor, names: Sequence[str], count: int = 5) -> list[dict[str, float]]:
    """Of logits (B, C) each image's ``count`` likeliest classes, probabilities (0..1) falling.

    Raises NotFiniteError for logits that are not.
    """
    if not logits.isfinite().all():
        raise NotFiniteError("The classifier's logits are not finite; use precision fp32.")
    values, places = logits.float().softmax(dim=1).topk(min(count, len(names)))
    rows = zip(values.tolist(), places.tolist(), strict=True)
    return [dict(zip((names[place] for place in where), own, strict=True)) for own, where in rows]


@dataclass(frozen=True)
class Gallery:
    """Images to be found again: their ``keys``, each once, and ``features`` (n, D)."""

    keys: Sequence[str]
    features: Tensor

    def nearest(self, vectors: Tensor, count: int = 5) -> list[dict[str, float]]:
        """Of vectors (B, D) each one's ``count`` nearest keys and their cosine similarities
        (-1..1), nearest first."""
        bank = self.features.to(vectors.device)
        values, places = nearest(vectors, bank, min(count, len(self.keys)))
        rows = zip(values.clamp(-1, 1).tolist(), places.tolist(), strict=True)
        return [
            {self.keys[place]: value for place, value in zip(where, own, strict=True)}
            for own, where in rows
        ]


def draw_bars(image: np.ndarray, shares: Mapping[str, float]) -> Image.Image:
    """The image (H, W, 3) uint8, made fit to be looked at, with a bar beside it for each class.

    Images of one size give pictures of one size if they have as many ``shares`` (0..1).
    """
    picture, size = fitted(image), 16
    letters = font(size)
    row, wide = 2 * size, 18 * size
    height = max(picture.height, row * len(shares) + 8)
    whole = Image.new("RGB", (picture.width + wide + 16, height), "white")
    whole.paste(picture)
    draw, left = ImageDraw.Draw(whole), picture.width + 8
    for place, (name, share) in enumerate(shares.items()):
        top, end = 4 + row * place, left + wide
        draw.rectangle((left, top + row - 9, end, top + row - 5), fill=REST)
        draw.rectangle((left, top + row - 9, left + round(wide * share), top + row - 5), fill=BAR)
        percent = f"{100 * share:.1f} %"
        room = wide - letters.getlength(percent) - 8
        draw.text((left, top), _cut(name, letters, room), fill="black", font=letters)
        draw.text((end, top), percent, fill="black", font=letters, anchor="ra")
    return whole


def draw_neighbours(
    image: np.ndarray, others: Sequence[tuple[str, float, np.ndarray | None]]
) -> Image.Image:
    """The image and beside it its neighbours, nearest first: (key, similarity, pixels or None)."""
    side, size = SMALLEST, 13
    letters = font(size)
    whole = Image.new("RGB", ((side + 8) * (1 + len(others)) + 12, side + 3 * size + 8), "white")
    draw = ImageDraw.Draw(whole)
    shown = [("", None, image), *others]
    for place, (key, similarity, pixels) in enumerate(shown):
        left = (side + 8) * place + (12 if place else 0)
        if pixels is not None:
            part = fitted(pixels, side, side)
            whole.paste(part, (left + (side - part.width) // 2, (side - part.height) // 2))
        if similarity is not None:
            name = _cut("/".join(key.split("/")[-2:]), letters, side)
            draw.text((left, side + 4), f"{similarity:.3f}", fill="black", font=letters)
            draw.text((left, side + 6 + size), name, fill="black", font=letters)
    draw.line((side + 9, 0, side + 9, whole.height), fill="#808080", width=2)
    return whole


def fitted(image: np.ndarray, least: int = SMALLEST, most: int = LARGEST) -> Image.Image:
    """An image (H, W, 3) uint8 whose longer side has so many pixels."""
    picture = Image.fromarray(image)
    longer = max(picture.size)
    factor = min(max(longer, least), most) / longer
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _cut(text: str, letters: Font, room: float) -> str:
    """The text on one line, shortened to so many pixels."""
    text = printable(" ".join(text.split()))
    if letters.getlength(text) <= room:
        return text
    while text and letters.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text}..."
