"""Normalised distillation: a teacher's logits in the place of the labels' cross entropy.

From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss
and Customized Soft Labels (NKD), arXiv 2303.13005; as G2SD's released code has it (arXiv
2302.14771), where it is an option of the fine-tuning. The teacher sees exactly the student's
images, mixed and disturbed as they are.

What is different there from NKD's own paper, and here: the labels have no cross entropy of their
own beside it, and of a mixed image the target is the class that has the larger part of it.
"""

from limbeck.errors import UserError
from limbeck.methods.method import AsSeen, check_same_classes
from limbeck.methods.options import NkdOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.losses import normalised_divergence
from limbeck.records import Batch, Features, Losses, Tap

LOGITS = Tap("logits")


class Nkd(AsSeen):
    """``normalised_divergence`` of the logits; the target is the likeliest class of the labels.

    It is all of the loss: the task's has no weight. For a student with one head. The part is "nkd".
    """

    Options = NkdOptions
    task_weight = 0.0
    needs_labels = True
    student_taps = teacher_taps = (LOGITS,)

    def __init__(
        self, options: NkdOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__()
        assert teacher is not None  # as its options say; the recipe refuses others
        if student.has_dist_head:
            raise UserError(
                "NKD teaches one classifier, and the student has two heads; choose --head single, "
                "or --method logit."
            )
        check_same_classes(student, teacher)
        if student.num_classes < 2:
            raise UserError("NKD compares the classes besides the target, and there are none.")
        self.temperature = options.temperature
        self.alpha = options.alpha

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The loss of one batch with labels, class indices (B,) or soft ones (B, C)."""
        assert teacher is not None and batch.labels is not None
        labels = batch.labels
        targets = labels.argmax(dim=-1) if labels.ndim == 2 else labels
        loss = normalised_divergence(
            student.taps[LOGITS], teacher.taps[LOGITS], targets, self.temperature, self.alpha
        )
        return Losses(total=loss, parts={"nkd": loss.detach()})
