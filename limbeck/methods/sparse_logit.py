"""Sparse-logit distillation: a classifier learns a teacher's class probabilities, the K largest.

TinyViT: Fast Pretraining Distillation for Small Vision Transformers, arXiv 2207.10666: soft cross
entropy at temperature 1, no labels; made for stored probabilities, and the same with a live
teacher. The teacher sees exactly the student's images, disturbed as they are.

What we do differently: where images are mixed, the teacher was asked about each of the two, not
about their mixture as in the released code, so that one stored answer serves with and without
mixing: the loss is linear in the labels, lambda CE(y_i) + (1 - lambda) CE(y_j).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.data.mixing import mix_pairs
from limbeck.errors import UserError
from limbeck.methods.method import Method, check_same_classes
from limbeck.methods.options import SparseLogitOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.soft_labels import soften, sparse_cross_entropies, take, top_k
from limbeck.records import Batch, Features, Losses, Tap

LOGITS = Tap("logits")


class SparseLogit(Method):
    """T^2 CE(y, softmax(z / T)), y the teacher's probabilities at temperature T; mean over images.

    z are the student's logits. Of y the K largest are stated, and the others share the rest. With
    ``label_weight`` w the total is (1 - w) times that and w CE(labels, softmax(z)). The parts are
    "soft" and "label".
    """

    Options = SparseLogitOptions
    takes_soft_labels = True
    student_taps = teacher_taps = (LOGITS,)

    def __init__(
        self, options: SparseLogitOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__()
        assert teacher is not None  # as its options say; the recipe refuses others
        check_same_classes(student, teacher)
        self.top_k = options.top_k
        self.temperature = options.temperature
        self.label_weight = options.label_weight
        self.needs_labels = options.label_weight > 0
        self.mix = options.mix
        self.pairs_samples = options.mix.is_on

    def prepare(self, batch: Batch) -> Batch:
        """Show the teacher what the student sees, but for the mixing."""
        batch = replace(batch, teacher_images=batch.images)
        return mix_pairs(batch, self.mix) if self.pairs_samples else batch

    def shown_to_teacher(self) -> dict[str, Any] | None:
        """The student's image, before it is mixed."""
        return {"images": "student"}

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The loss of one batch. Raises UserError where it needs labels and there are none."""
        assert teacher is not None
        logits, said = student.taps[LOGITS], teacher.soft_labels
        if said is None:
            said = top_k(teacher.taps[LOGITS], self.top_k)
        said = soften(said, self.temperature)
        own = logits if self.temperature == 1 else logits / self.temperature
        soft = _mean_of_mixed(lambda rows: sparse_cross_entropies(own, take(said, rows)), batch)
        parts = {"soft": (1 - self.label_weight) * self.temperature**2 * soft}
        if self.needs_labels:
            parts["label"] = self.label_weight * self._label_loss(logits, batch)
        total = torch.stack(list(parts.values())).sum()
        return Losses(total, {name: part.detach() for name, part in parts.items()})

    def _label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        labels = batch.labels
        if labels is None:
            raise UserError("sparse_logit.label_weight needs labelled images; set it to 0.")
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return _mean_of_mixed(
            lambda rows: F.cross_entropy(wide, labels[rows], reduction="none"), batch
        )


def _mean_of_mixed(losses_of: Callable[[Tensor | slice], Tensor], batch: Batch) -> Tensor:
    """The mean loss of images, where mixed, against their own labels and their partners'.

    ``losses_of`` gives the losses (B,) against the labels of these rows.
    """
    own, shares = losses_of(slice(None)), batch.mix_shares
    if shares is None:
        return own.mean()
    rows = torch.arange(len(own), device=own.device)
    partners = (rows ^ 1).clamp(max=len(rows) - 1)  # 1 for 0, 0 for 1; an odd last one is alone
    return (shares * own + (1 - shares) * losses_of(partners)).mean()
