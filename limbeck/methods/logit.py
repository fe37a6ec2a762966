"""Logit distillation: a classification teacher beside the labels, while a student is fine-tuned.

Training data-efficient image transformers & distillation through attention (DeiT), arXiv
2012.12877. The teacher sees exactly the student's images, mixed and disturbed as they are. Of a
student with two heads the distillation head learns from the teacher; one without a distillation
token learns both from its one head.
"""

from limbeck.methods.method import AsSeen, check_same_classes
from limbeck.methods.options import LogitOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.losses import logit_divergence, soft_cross_entropy
from limbeck.records import Batch, Features, Losses, Tap

# DeiT's section 4: equal halves for hard labels; for soft ones lambda 0.1 and tau 3.
WEIGHTS = {"hard": 0.5, "soft": 0.1}
TEMPERATURE = 3.0


class Logit(AsSeen):
    """L_hard = cross entropy of z_s against argmax(z_t); L_soft = T^2 KL(p_t || p_s).

    z are the logits of student and teacher, p = softmax(z / T); sum over classes, mean over images.
    ``weight`` is DeiT's lambda: with a task the total is (1 - weight) L_task + weight L.
    """

    Options = LogitOptions

    def __init__(
        self, options: LogitOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__()
        assert teacher is not None  # as its options say; the recipe refuses others
        check_same_classes(student, teacher)
        self.is_hard = options.kind == "hard"
        self.temperature = options.temperature or TEMPERATURE
        self.own_weight = options.weight or WEIGHTS[options.kind]
        self.task_weight = 1 - self.own_weight
        self.student_tap = Tap("dist_logits" if student.has_dist_head else "logits")
        self.student_taps = (self.student_tap,)
        self.teacher_taps = (Tap("logits"),)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The loss of one batch; its part is "logit"."""
        del batch
        assert teacher is not None
        own, target = student.taps[self.student_tap], teacher.taps[Tap("logits")]
        if self.is_hard:
            loss = soft_cross_entropy(own, target.argmax(dim=-1))
        else:
            loss = logit_divergence(own, target, self.temperature)
        return Losses(total=loss, parts={"logit": loss.detach()})
