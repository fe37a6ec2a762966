"""Soft labels as bytes: what a store holds of a teacher's class probabilities.

TinyViT (arXiv 2207.10666) stores K class ids in 16 bits and K probabilities in float16, and takes
what is missing to 1 as the remainder: that is no better than the rounding of the largest one. Here
the remainder is stored and the largest probability is what is missing to 1; ids take as many bits
as the classes need, and the other probabilities 12, evenly in their logarithm.

A record, bits from the low end of each byte on, with K = ``top_k`` and C = ``num_classes``:

========================= =========== =======================================================
field                     bits        what
========================= =========== =======================================================
remainder                 32          float32
2nd probability           32          float32; not where K = 1
K-th probability          32          float32; not where K < 3
class ids                 K b         descending by probability; b = bits of C - 1, at least 1
3rd to (K - 1)th          (K - 3) 12  0 for the K-th, 4095 for the 2nd probability; not where
                                      K < 4
========================= =========== =======================================================
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from limbeck.ops.soft_labels import spread
from limbeck.records import SoftLabels

CODE_BITS = 12
NUM_STEPS = 2**CODE_BITS - 1
FLOOR = 2.0**-40  # of logarithms; K smaller ones are nothing beside float32's own error of the rest
MAX_ID_BITS = 25  # a field and its place in a byte, at most 7, are read from four bytes


@dataclass(frozen=True)
class LabelCodec:
    """Encodes ``SoftLabels`` with ``top_k`` stated of ``num_classes`` probabilities, and decodes.

    Raises ValueError for more stated ones than classes, and for more than 2^25 classes.
    """

    top_k: int
    num_classes: int

    def __post_init__(self) -> None:
        if not 0 < self.top_k <= self.num_classes <= 2**MAX_ID_BITS:
            raise ValueError(f"{self.top_k} of {self.num_classes} classes can't be encoded.")

    @property
    def num_bytes(self) -> int:
        """Of one record."""
        return -(-sum(self._widths()) // 8)

    def encode(self, labels: SoftLabels) -> UInt8[Tensor, "B bytes"]:
        """One record per image, on the labels' device. Raises ValueError for other labels."""
        probs, classes = labels.probs.float(), labels.classes
        if (classes.shape[1], labels.num_classes) != (self.top_k, self.num_classes):
            raise ValueError(
                f"Labels of {classes.shape[1]} of {labels.num_classes} classes are no labels of "
                f"{self.top_k} of {self.num_classes}."
            )
        floats = torch.cat((labels.rest.float()[:, None].clamp(min=0), probs[:, self._exact()]), 1)
        fields = [floats.view(torch.int32).long(), classes]
        if self.top_k > 3:
            lowest, octaves = _log_range(probs[:, 1:2], probs[:, -1:])
            steps = (probs[:, 2:-1].clamp(min=FLOOR).log2() - lowest) / octaves * NUM_STEPS
            fields.append(steps.round().clamp(0, NUM_STEPS).long())
        return self._pack(torch.cat(fields, dim=1))

    def decode(self, records: UInt8[Tensor, "B bytes"]) -> SoftLabels:
        """The labels of records, on their device.

        All add up to 1, and no stated class has less than those that share the remainder.
        """
        num_floats = 1 + len(self._exact())
        fields = self._unpack(records)
        floats = fields[:, :num_floats].int().view(torch.float32)
        classes, codes = fields[:, num_floats:].split((self.top_k, max(0, self.top_k - 3)), dim=1)
        rest, second, last = floats[:, :1], floats[:, 1:2], floats[:, 2:3]
        parts = [second, last]
        if self.top_k > 3:
            lowest, octaves = _log_range(second, last)
            between = (lowest + octaves * (codes / NUM_STEPS)).exp2()
            parts.insert(1, between.clamp(last, second))
        lower = torch.cat(parts, dim=1).maximum(spread(rest, self.num_classes - self.top_k))
        least = lower[:, :1] if self.top_k > 1 else torch.zeros_like(rest)
        largest = (1 - rest - lower.sum(dim=1, keepdim=True)).maximum(least)
        probs = torch.cat((largest, lower), dim=1)
        total = probs.sum(dim=1, keepdim=True) + rest
        return SoftLabels(probs / total, classes, (rest / total)[:, 0], self.num_classes)

    def _exact(self) -> list[int]:
        """The places of the probabilities that are stored as they are: the second and the last."""
        return [1, self.top_k - 1][: self.top_k - 1]

    def _widths(self) -> list[int]:
        """Bits of each field."""
        id_bits = max(1, (self.num_classes - 1).bit_length())
        num_floats, num_codes = 1 + len(self._exact()), max(0, self.top_k - 3)
        return [32] * num_floats + [id_bits] * self.top_k + [CODE_BITS] * num_codes

    @lru_cache(maxsize=8)  # noqa: B019 - a codec is a value of two numbers
    def _places(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Of each field its width, its first bit within a byte, and the four bytes it is in."""
        widths = torch.tensor(self._widths())
        starts = widths.cumsum(0) - widths
        four = starts[:, None] // 8 + torch.arange(4)
        return widths.to(device), (starts % 8).to(device), four.to(device)

    def _pack(self, fields: Int[Tensor, "B fields"]) -> UInt8[Tensor, "B bytes"]:
        _, shifts, four = self._places(fields.device)
        pieces = (fields << shifts).unsqueeze(-1) >> _byte_shifts(fields) & 255
        size = (len(fields), self.num_bytes + 3)
        # Added up: where two fields share a byte, their bits do not overlap.
        packed = torch.zeros(size, dtype=torch.int64, device=fields.device)
        packed.index_add_(1, four.flatten(), pieces.flatten(1))
        return packed[:, : self.num_bytes].to(torch.uint8)

    def _unpack(self, records: UInt8[Tensor, "B bytes"]) -> Int[Tensor, "B fields"]:
        widths, shifts, four = self._places(records.device)
        pieces = F.pad(records, (0, 3))[:, four].long()  # [B, fields, 4]
        return (pieces << _byte_shifts(pieces)).sum(dim=-1) >> shifts & (1 << widths) - 1


def _byte_shifts(like: Tensor) -> Tensor:
    return torch.arange(0, 32, 8, device=like.device)


def _log_range(
    largest: Float[Tensor, "B 1"], least: Float[Tensor, "B 1"]
) -> tuple[Float[Tensor, "B 1"], Float[Tensor, "B 1"]]:
    """The lower end of the logarithms, and the octaves from there to the upper one, above 0."""
    lowest, highest = least.clamp(min=FLOOR).log2(), largest.clamp(min=FLOOR).log2()
    return lowest, (highest - lowest).clamp(min=2.0**-20)
