"""CLS-token distillation: one vector per image.

TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, arXiv 2301.01296, its study of the
CLS token, with and without MAE's reconstruction. The paper says KL and no more; the linear
projection to the teacher's width, its affine-free norm and the softmax over channels are our
reading.
"""

from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.methods.options import ClsTokenOptions
from limbeck.methods.transfer import Transfer
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.losses import channel_divergence
from limbeck.records import Tap


class ClsToken(Transfer):
    """L = KL(softmax(LayerNorm(c_teacher) / T) || softmax(proj(c_student) / T)), mean over images.

    c is the CLS token after a block; the softmax runs over its channels, the norm has no affine
    weights; proj is linear, D_student -> D_teacher, and vanishes with the method.
    """

    Options = ClsTokenOptions

    def __init__(
        self, options: ClsTokenOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__(options, student, teacher)
        if not self.keeps_cls:
            role = "teacher" if student.has_cls_token else "student"
            raise UserError(
                f"The {role} has no CLS token; choose another {role}, or --method feature."
            )
        # One token is compared; only a mask that the teacher shares counts patches.
        self.needs_same_grid = bool(options.mask_ratio) and not self.teacher_sees_all
        self.temperature = options.temperature
        self.own = Tap("tokens", options.student_block)
        self.target = Tap("tokens", options.teacher_block)
        self.set_taps((self.own,), (self.target,))
        self.proj = nn.Linear(student.embed_dim, self.teacher_facts.embed_dim)

    def compare(self, student: dict[Tap, Tensor], teacher: dict[Tap, Tensor]) -> dict[str, Tensor]:
        """The one loss, "cls"."""
        own = self.proj(student[self.own][:, 0])
        target = teacher[self.target][:, 0]
        return {"cls": channel_divergence(own, target, self.temperature)}
