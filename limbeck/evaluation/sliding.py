"""The map of classes of an image of any size, by windows or at once.

No image's logits are ever held at its full size: they are kept as the segmenter gives them, a
quarter as fine, and brought to the image's size a few rows at a time. Of windows only those that
the present rows need are kept, so that memory grows with an image's width alone.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.machine import DTYPES, Precision
from limbeck.errors import NotFiniteError, UserError
from limbeck.evaluation.options import MapOptions
from limbeck.models.dense.build import at_img_size
from limbeck.models.dense.segmenter import Segmenter
from limbeck.records import Tap

LOGITS = Tap("logits")
LONGEST = 4
"""Times the shorter side of what an image is fitted into: 2048 by 512."""
MAX_VALUES = 2**24
"""Logits that are held at the size of the image at a time: 64 MiB."""

Size = tuple[int, int]


def predict_map(
    segmenter: Segmenter, image: Tensor, options: MapOptions, precision: Precision = "fp32"
) -> Tensor:
    """The class (H, W) uint8 (int16 of more than 255 classes) of each pixel, on the CPU.

    ``image`` (3, H, W) uint8, or float in 0..1, on any device. Raises NotFiniteError for logits
    that are not.
    """
    size = (int(image.shape[1]), int(image.shape[2]))
    count = segmenter.facts.num_classes
    few = count <= 255
    found = torch.empty(size, dtype=torch.uint8 if few else torch.int16)
    with torch.no_grad():
        shown = [_shown(segmenter, image, scale, options, precision) for scale in options.scales]
        band = max(1, MAX_VALUES // (count * size[1]))
        for start in range(0, size[0], band):
            rows = slice(start, min(start + band, size[0]))
            parts = [resized_rows(answer.rows, answer.size, size, rows) for answer in shown]
            if len(parts) > 1:
                parts = [torch.stack([part.softmax(0) for part in parts]).mean(0)]
            if not parts[0].isfinite().all():
                raise NotFiniteError("The segmenter's logits are not finite; use precision fp32.")
            found[rows] = parts[0].argmax(dim=0).to(found.dtype).cpu()
    return found


def check_stride(options: MapOptions, window: Size) -> None:
    """Raise UserError for windows that leave gaps."""
    if options.stride is not None and options.stride > min(window):
        raise UserError(
            f"A stride of {options.stride} leaves gaps between windows of {min(window)} pixels; "
            "choose one that is no larger."
        )


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side; the last is shifted back to end with it."""
    count = max(side - window + stride - 1, 0) // stride + 1
    return [min(index * stride, max(side - window, 0)) for index in range(count)]


def fitted_size(size: Size, window: int) -> Size:
    """An image's size, its ratio kept, in a box of the window's side and ``LONGEST`` times it."""
    factor = min(LONGEST * window / max(size), window / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def resized_rows(
    read: Callable[[slice], Tensor], size_from: Size, size_to: Size, rows: slice
) -> Tensor:
    """``rows`` (C, n, W) of a map at another size, bilinear as ``F.interpolate`` is.

    ``read`` gives rows of the map at its own size, (C, m, w); only those needed are asked for.
    """
    if size_from == size_to:
        return read(rows)
    scale = size_from[0] / size_to[0]
    places = (torch.arange(rows.start, rows.stop) + 0.5).mul(scale).sub(0.5).clamp(min=0)
    above = places.long().clamp(max=size_from[0] - 1)
    below = (above + 1).clamp(max=size_from[0] - 1)
    first = int(above[0])
    own = read(slice(first, int(below[-1]) + 1))
    share = (places - above).to(own.device)[:, None]
    mixed = torch.lerp(own[:, above - first], own[:, below - first], share.to(own.dtype))
    wide = F.interpolate(
        mixed[None], (mixed.shape[1], size_to[1]), mode="bilinear", align_corners=False
    )
    return wide[0]


class Windows:
    """The logits of an image that is seen in windows: their mean where they overlap.

    ``image`` (3, h, w) is at least as large as a window; ``size`` is what of it is no filling.
    """

    def __init__(
        self,
        predict: Callable[[Tensor], Tensor],
        image: Tensor,
        size: Size,
        window: Size,
        options: MapOptions,
    ) -> None:
        self.predict, self.image, self.size, self.window = predict, image, size, window
        check_stride(options, window)
        strides = [options.stride or max(1, side * 2 // 3) for side in window]
        sides = zip(image.shape[1:], window, strides, strict=True)
        self.tops, self.lefts = (window_starts(*each) for each in sides)
        self.batch = options.window_batch
        self.kept: dict[int, Tensor] = {}

    def rows(self, rows: slice) -> Tensor:
        """Logits (C, n, w); what lies above them is forgotten."""
        height, width = self.window
        ends = {top: top + height for top in self.tops}
        self.kept = {top: kept for top, kept in self.kept.items() if ends[top] > rows.start}
        needed = [top for top in self.tops if top < rows.stop and ends[top] > rows.start]
        parts, count = None, torch.zeros(rows.stop - rows.start, self.image.shape[2])
        for top in needed:
            if top not in self.kept:
                self.kept[top] = self._predict_row(top)
            inside = slice(max(rows.start, top), min(rows.stop, ends[top]))
            own = slice(inside.start - top, inside.stop - top)
            here = slice(inside.start - rows.start, inside.stop - rows.start)
            for left, logits in zip(self.lefts, self.kept[top], strict=True):
                if parts is None:
                    parts = logits.new_zeros(len(logits), *count.shape)
                wide = resized_rows(
                    lambda part, of=logits: of[:, part],  # type: ignore[misc]
                    (int(logits.shape[1]), int(logits.shape[2])), self.window, own,
                )  # fmt: skip
                parts[:, here, left : left + width] += wide
                count[here, left : left + width] += 1
        assert parts is not None
        return (parts / count.to(parts.device))[:, :, : self.size[1]]

    def _predict_row(self, top: int) -> Tensor:
        """Of the windows that begin in a row, (n, C, h/4, w/4)."""
        height, width = self.window
        row = self.image[:, top : top + height]
        cut = [row[:, :, left : left + width] for left in self.lefts]
        return torch.cat([
            self.predict(torch.stack(cut[start : start + self.batch]))
            for start in range(0, len(cut), self.batch)
        ])  # fmt: skip


class Whole:
    """The logits of an image that was seen at once."""

    def __init__(self, logits: Tensor, padded: Size, size: Size) -> None:
        self.logits, self.padded, self.size = logits, padded, size

    def rows(self, rows: slice) -> Tensor:
        """Logits (C, n, w)."""
        own = (int(self.logits.shape[1]), int(self.logits.shape[2]))
        wide = resized_rows(lambda part: self.logits[:, part], own, self.padded, rows)
        return wide[:, :, : self.size[1]]


def _shown(
    segmenter: Segmenter, image: Tensor, scale: float, options: MapOptions, precision: Precision
) -> Windows | Whole:
    """An image as the segmenter sees it, and what it says of it as soon as it is asked."""
    facts = segmenter.facts
    size = (int(image.shape[1]), int(image.shape[2]))
    if options.resize == "fit":
        size = fitted_size(size, min(facts.img_size))
    size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    x = image.to(segmenter.backbone.mean.device)
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    if size != tuple(x.shape[1:]):
        x = F.interpolate(x[None], size, mode="bilinear", align_corners=False)[0]
    if options.mode == "slide":
        least = facts.img_size
    else:
        multiple = max(*facts.block_strides, facts.mask_unit)
        least = (-(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple)
        segmenter = at_img_size(segmenter, least)
    x = _fill(x, least, segmenter.backbone.mean)

    def predict(windows: Tensor) -> Tensor:
        with torch.autocast(x.device.type, DTYPES[precision], enabled=precision != "fp32"):
            logits = segmenter(windows, None, (LOGITS,)).taps[LOGITS].float()
            if options.flip:
                mirrored = segmenter(windows.flip(-1), None, (LOGITS,)).taps[LOGITS]
                logits = (logits + mirrored.float().flip(-1)) / 2
        return logits

    if options.mode == "whole":
        return Whole(predict(x[None])[0], least, size)
    return Windows(predict, x, size, facts.img_size, options)


def _fill(image: Tensor, least: Size, mean: Tensor) -> Tensor:
    """The image with the mean's colour right and below, where it is smaller than ``least``."""
    height, width = (max(own, side) for own, side in zip(image.shape[1:], least, strict=True))
    if (height, width) == tuple(image.shape[1:]):
        return image
    filled = mean.expand(3, height, width).clone()
    filled[:, : image.shape[1], : image.shape[2]] = image
    return filled
