"""What all arms of the TinyMIM study share: target blocks, the mask, and tokens that both have.

TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, arXiv 2301.01296. The mask and the
reconstruction are its section on masked input; the weight between the losses, and what the teacher
then sees, are not in the paper and are options here.
"""

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.methods.method import Method
from limbeck.methods.options import TransferOptions
from limbeck.methods.reconstruction import Reconstruction, check_same_units, count_units
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.masking import random_ids_keep
from limbeck.records import Batch, Features, Losses, Tap


class Transfer(Method):
    """L = sum of what an arm compares + weight * MAE's reconstruction (weight 0: without).

    An arm names its taps with ``set_taps`` when it is built, and implements ``compare``. Register
    and distillation tokens are left out on both sides, and the CLS token where only one side has
    it: what is compared are the tokens that both networks have, in the same order.
    """

    def __init__(
        self, options: TransferOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__()
        if teacher is None:
            raise UserError("This method needs a teacher; name one with --teacher.")
        self.student_facts, self.teacher_facts = student, teacher
        self.mask_ratio = options.mask_ratio
        self.teacher_sees_all = options.teacher_sees == "all"
        if self.mask_ratio:
            self.num_units = count_units(student, self.mask_ratio)
            check_same_units(student, None if self.teacher_sees_all else teacher)
        _check_block(options.teacher_block, teacher, "teacher")
        _check_block(options.student_block, student, "student")
        self.keeps_cls = student.has_cls_token and teacher.has_cls_token
        self.weight = options.reconstruction.weight
        self.reconstruction = (
            Reconstruction(options.reconstruction, student) if self.weight else None
        )

    def set_taps(self, student_taps: tuple[Tap, ...], teacher_taps: tuple[Tap, ...]) -> None:
        """Say what ``compare`` needs; the reconstruction's tap is added where there is one."""
        output = () if self.reconstruction is None else self.reconstruction.taps
        self.compared = student_taps
        # A set in order: an arm may ask for the output itself.
        self.student_taps = tuple(dict.fromkeys(student_taps + output))
        self.teacher_taps = teacher_taps

    @abstractmethod
    def compare(self, student: dict[Tap, Tensor], teacher: dict[Tap, Tensor]) -> dict[str, Tensor]:
        """Named losses of the taps, (B, [nh,] N, width) with the tokens that both sides have.

        Without ``needs_same_grid`` only the CLS token, the first, is sure to be the same.
        """

    def prepare(self, batch: Batch) -> Batch:
        """Draw each sample's visible patches from its view seed, where patches are masked."""
        if not self.mask_ratio:
            return batch
        ids_keep = random_ids_keep(batch.view_seeds, self.num_units, self.mask_ratio)
        teacher_ids = None if self.teacher_sees_all else ids_keep
        return replace(batch, ids_keep=ids_keep, teacher_ids_keep=teacher_ids)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The arm's losses by name, and "pixel", weighted, with a reconstruction."""
        assert teacher is not None
        picks_places = self.teacher_sees_all and self.needs_same_grid
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
        patches = value[..., prefix:, :]
        if places is not None:
            places = places.unsqueeze(-1)  # [B, kept, 1]
            if value.ndim == 4:
                places = places.unsqueeze(1)
            patches = patches.take_along_dim(places, dim=-2)
        return torch.cat((value[..., :keeps, :], patches), dim=-2)


def _check_block(block: int, facts: EncoderFacts, role: str) -> None:
    if not -facts.depth <= block < facts.depth:
        raise UserError(
            f"The {role} has {facts.depth} blocks (0 to {facts.depth - 1}, or -1 for the last); "
            f"there is no block {block}: change {role}_block."
        )
