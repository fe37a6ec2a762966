"""What becomes of the patches that a student does not see: dropped, or a mask token in their place.

Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377, and SimMIM, arXiv 2111.09886.
What we do differently: the mask follows from each view's seed, so that it does not depend on the
number of ranks.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.methods.options import ComparisonOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import MASK_TOKEN, Keepsake
from limbeck.ops.masking import count_kept, random_ids_keep, split_units
from limbeck.records import Batch


class DropPatches(nn.Module):
    """The student computes int(units * (1 - mask_ratio)) of the encoder's mask units alone."""

    def __init__(self, mask_ratio: float, student: EncoderFacts) -> None:
        super().__init__()
        if not student.can_drop:
            raise UserError(
                f"{student.architecture.get('name', 'This encoder')} can't leave patches out; hide "
                "them by a mask token: --method simmim, or masking mask-token beside a teacher."
            )
        self.mask_ratio = mask_ratio
        self.num_units = student.mask_grid[0] * student.mask_grid[1]
        check_mask_ratio(mask_ratio, self.num_units)

    @property
    def shown(self) -> dict[str, Any]:
        """What, with a view's seed, says which patches are seen."""
        return {"masking": "drop", "mask_ratio": self.mask_ratio, "num_units": self.num_units}

    def forward(self, batch: Batch) -> Batch:
        """The batch with ``ids_keep``."""
        ids_keep = random_ids_keep(batch.view_seeds, self.num_units, self.mask_ratio)
        return replace(batch, ids_keep=ids_keep)


class MaskTokens(nn.Module):
    """A learned token stands for the patches in squares of ``mask_patch_size`` pixels.

    Of these the share ``mask_ratio``, rounded up, is masked. The token starts normal with std 0.02.
    Raises UserError where the squares do not tile the image and the encoder's mask units them.
    """

    def __init__(self, mask_ratio: float, mask_patch_size: int, student: EncoderFacts) -> None:
        super().__init__()
        sides = student.img_size
        is_tiling = not any(side % mask_patch_size for side in sides)
        if mask_patch_size % student.mask_unit or not is_tiling:
            raise UserError(
                f"Squares of {mask_patch_size} pixels do not fit: mask_patch_size must be a "
                f"multiple of {student.mask_unit}, the encoder's patches, and divide the image, "
                f"{sides[0]} x {sides[1]} pixels."
            )
        self.mask_ratio = mask_ratio
        self.squares = sides[0] // mask_patch_size, sides[1] // mask_patch_size
        self.units_per_side = mask_patch_size // student.mask_unit
        num_squares = self.squares[0] * self.squares[1]
        check_mask_ratio(mask_ratio, num_squares, f"squares of {mask_patch_size} pixels")
        self.mask_token = nn.Parameter(torch.empty(1, 1, student.input_dims[0]))
        nn.init.normal_(self.mask_token, std=0.02)

    @property
    def shown(self) -> dict[str, Any]:
        """What, with a view's seed, says which patches are seen."""
        return {
            "masking": "mask-token",
            "mask_ratio": self.mask_ratio,
            "squares": list(self.squares),
            "units_per_side": self.units_per_side,
        }

    def forward(self, batch: Batch) -> Batch:
        """The batch with ``ids_keep`` and ``mask_token``."""
        num_squares = self.squares[0] * self.squares[1]
        kept = random_ids_keep(batch.view_seeds, num_squares, self.mask_ratio)
        ids_keep = split_units(kept, self.squares, self.units_per_side)
        return replace(batch, ids_keep=ids_keep, mask_token=self.mask_token)

    def recall(self, kept: dict[str, Keepsake]) -> None:
        """Go on with the token that the student's start brings, if it does."""
        if MASK_TOKEN in kept:
            self.load_state_dict(kept[MASK_TOKEN].weights)

    def keepsakes(self) -> dict[str, Keepsake]:
        """The token: as a teacher the student then sees masked images as it did here."""
        return {MASK_TOKEN: Keepsake(self.state_dict())}


def build_masking(options: ComparisonOptions, student: EncoderFacts) -> DropPatches | MaskTokens:
    """The masking beside a teacher that the options name."""
    if options.masking == "drop":
        return DropPatches(options.mask_ratio, student)
    return MaskTokens(options.mask_ratio, options.regression.mask_patch_size, student)


def check_mask_ratio(mask_ratio: float, num_units: int, units: str = "patches") -> None:
    """Raise UserError unless at least one patch (or unit) is kept and one masked."""
    num_keep = count_kept(num_units, mask_ratio)
    if not 0 < num_keep < num_units:
        raise UserError(
            f"mask_ratio {mask_ratio} keeps {num_keep} of {num_units} {units}; at least one must "
            "be kept and one masked: change mask_ratio"
            + ("." if units == "patches" else ", or set a smaller mask_patch_size.")
        )
