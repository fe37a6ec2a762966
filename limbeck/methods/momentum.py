"""What MoCo-v3 and DINO share: two views of an image, a momentum encoder, and a head on both.

The momentum encoder is in the teacher's place (the distiller makes it and lets it follow); the
head's copy is here.
"""

from torch import Tensor, nn

from limbeck.methods.follower import Follower
from limbeck.methods.method import Method
from limbeck.methods.options import TwoViewOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.schedules import cosine_momentum
from limbeck.records import Features, Tap


class Momentum(Method):
    """A method whose teacher is the student's momentum encoder, with a momentum head.

    An image is its CLS token after the final norm, or the mean of its tokens where there is none.
    """

    def __init__(
        self,
        options: TwoViewOptions,
        student: EncoderFacts,
        teacher: EncoderFacts | None,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.momentum: float = options.momentum
        self.has_cls_token = student.has_cls_token
        self.student_taps = self.teacher_taps = (Tap("output"),)
        self.head = head
        self.teacher_head = Follower(head)

    def after_step(self, step: int, total_steps: int) -> None:
        """Let the momentum head follow."""
        momentum = cosine_momentum(step - 1, total_steps, self.momentum)
        self.teacher_head.follow(self.head, momentum)

    def split_views(self, features: Features, num_views: int) -> tuple[Tensor, ...]:
        """The images' vectors (B, D), one tensor per view."""
        assert features.tokens is not None
        tokens = features.tokens  # [B * V, N, D]
        x = tokens[:, 0] if self.has_cls_token else tokens.mean(dim=1)
        return x.unflatten(0, (-1, num_views)).unbind(dim=1)
