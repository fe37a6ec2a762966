"""What all methods share that compare inner tensors: the mask, and tokens that both sides have.

Masks are those of MAE (arXiv 2111.06377) or SimMIM (arXiv 2111.09886).
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.methods.masking import MaskTokens, build_masking
from limbeck.methods.method import Method
from limbeck.methods.options import ComparisonOptions
from limbeck.methods.reconstruction import Reconstruction
from limbeck.methods.regression import Regression
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import Keepsake
from limbeck.records import Batch, Features, Losses, Tap


class Comparison(Method):
    """L = sum of what a method compares + weight * reconstruction of pixels (weight 0: without).

    A method names its taps with ``set_taps`` when it is built, and implements ``compare``. Register
    and distillation tokens are left out on both sides, and the CLS token where only one side has
    it: what is compared are the tokens that both networks have, in the same order.
    """

    def __init__(
        self, options: ComparisonOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__()
        assert teacher is not None  # as its options say; the recipe refuses others
        for role, facts in (("student", student), ("teacher", teacher)):
            if not facts.depth:
                raise UserError(
                    f"The {role} has no blocks: only its logits are known, which are for limbeck "
                    "finetune; choose a vision Transformer."
                )
        self.student_facts, self.teacher_facts = student, teacher
        self.masking = build_masking(options, student) if options.mask_ratio else None
        is_dropping = options.masking == "drop"
        # Under mask tokens the student's tokens are all there, so nothing has to be picked.
        self.picks_places = is_dropping and options.teacher_sees == "all"
        self.teacher_sees_all = options.teacher_sees == "all"
        if self.picks_places and student.mask_unit != student.patch_size:
            raise UserError(
                "teacher_sees all needs a student whose patches are dropped one by one, and "
                f"{student.architecture.get('name')} drops them in units of {student.mask_unit} "
                "pixels; leave it out."
            )
        # Where the grids differ as well, the distiller knows a better remedy.
        is_other = student.grid == teacher.grid and student.mask_grid != teacher.mask_grid
        if self.masking is not None and not self.teacher_sees_all and is_other:
            raise UserError(
                f"The student is masked in units of {student.mask_unit} pixels and its teacher in "
                f"units of {teacher.mask_unit}; choose a teacher of the same family, or mask_ratio "
                "0."
            )
        self.keeps_cls = student.has_cls_token and teacher.has_cls_token
        part = options.reconstruction if is_dropping else options.regression
        build: Any = Reconstruction if is_dropping else Regression
        self.weight = part.weight
        self.reconstruction: Reconstruction | Regression | None = None
        if part.weight:
            self.reconstruction = build(part, student, part.before_block)

    def set_taps(self, student_taps: tuple[Tap, ...], teacher_taps: tuple[Tap, ...]) -> None:
        """Say what ``compare`` needs; the reconstruction's taps are added where there is one."""
        others = () if self.reconstruction is None else self.reconstruction.taps
        # Sets in order: a method may ask for the output itself, or for one block twice.
        self.compared = tuple(dict.fromkeys(student_taps))
        self.student_taps = tuple(dict.fromkeys(student_taps + others))
        self.teacher_taps = tuple(dict.fromkeys(teacher_taps))

    @abstractmethod
    def compare(self, student: dict[Tap, Tensor], teacher: dict[Tap, Tensor]) -> dict[str, Tensor]:
        """Named losses of the taps with the tokens that both sides have.

        (B, [nh,] N, width), and (B, nh, N, N) of scores. Without ``needs_same_grid`` only the CLS
        token, the first, is sure to be the same.
        """

    def recall(self, kept: dict[str, Keepsake]) -> None:
        if isinstance(self.reconstruction, Reconstruction):
            self.reconstruction.recall(kept)
        if isinstance(self.masking, MaskTokens):
            self.masking.recall(kept)

    def keepsakes(self) -> dict[str, Keepsake]:
        """The decoder, where there is one of all tokens, or the mask token."""
        if isinstance(self.reconstruction, Reconstruction):
            return self.reconstruction.keepsakes()
        return self.masking.keepsakes() if isinstance(self.masking, MaskTokens) else {}

    def prepare(self, batch: Batch) -> Batch:
        """Draw each sample's visible patches from its view seed, where patches are masked."""
        if self.masking is None:
            return batch
        masked: Batch = self.masking(batch)
        teacher_ids = None if self.teacher_sees_all else masked.ids_keep
        return replace(masked, teacher_ids_keep=teacher_ids)

    def shown_to_teacher(self) -> dict[str, Any] | None:
        """All, or what the masking keeps; not known of a class with a ``prepare`` of its own."""
        if type(self).prepare is not Comparison.prepare:
            return None
        return {} if self.masking is None or self.teacher_sees_all else self.masking.shown

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The method's losses by name, and "pixel", weighted, with a reconstruction."""
        assert teacher is not None
        picks_places = self.picks_places and self.needs_same_grid
        places = batch.ids_keep if picks_places else None
        losses = self.compare(
            {tap: self._shared_tokens(student, tap) for tap in self.compared},
            {tap: self._shared_tokens(teacher, tap, places) for tap in self.teacher_taps},
        )
        if self.reconstruction is not None:
            losses["pixel"] = self.weight * self.reconstruction(student, batch)
        parts = {name: loss.detach() for name, loss in losses.items()}
        return Losses(total=torch.stack(list(losses.values())).sum(), parts=parts)

    def _shared_tokens(self, features: Features, tap: Tap, places: Tensor | None = None) -> Tensor:
        """A tap with the tokens that both have; of a full one, the patches ``places`` (B, kept)."""
        value = features.taps[tap]  # [B, (nh,) N, width]
        prefix, keeps = features.num_prefix_tokens, int(self.keeps_cls)
        if prefix == keeps and places is None:
            return value
        if tap.kind == "scores":  # tokens on both of its last axes
            value = _pick_tokens(value.mT, prefix, keeps, places).mT
        return _pick_tokens(value, prefix, keeps, places)


def _pick_tokens(value: Tensor, prefix: int, keeps: int, places: Tensor | None) -> Tensor:
    """On the last but one axis the first ``keeps`` tokens and the patches, all or ``places``."""
    patches = value[..., prefix:, :]
    if places is not None:
        places = places.unsqueeze(-1)  # [B, kept, 1]
        if value.ndim == 4:
            places = places.unsqueeze(1)
        patches = patches.take_along_dim(places, dim=-2)
    return torch.cat((value[..., :keeps, :], patches), dim=-2)
