"""Maps of classes from a teacher that segments, beside the labels of the pixels.

Channel-wise Knowledge Distillation for Dense Prediction (CWD, arXiv 2011.13256), as G2SD's second
stage has it (arXiv 2302.14771), and the divergence place by place. Both compare the logits of the
decoders, the student's after its dropout. The teacher sees exactly the student's images; pixels
without a label count like all others.
"""

from abc import abstractmethod

from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import UserError
from limbeck.methods.method import AsSeen
from limbeck.methods.options import ChannelWiseOptions, PixelKlOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.dense import channel_wise_loss, pixel_divergence
from limbeck.records import Batch, Features, Losses, Tap

LOGITS = Tap("logits")


class MapMethod(AsSeen):
    """What both share: the teacher's maps at the student's size, and the weight beside the task."""

    name: str
    student_taps = teacher_taps = (LOGITS,)

    def __init__(
        self,
        options: ChannelWiseOptions | PixelKlOptions,
        student: EncoderFacts,
        teacher: EncoderFacts | None,
    ) -> None:
        super().__init__()
        if teacher is None:
            raise UserError("The teacher's maps need a teacher; name one with --teacher.")
        for facts, role in ((student, "student"), (teacher, "teacher")):
            if not facts.has_maps:
                raise UserError(
                    f"The {role} has no maps of classes to compare; choose one that segments "
                    "(limbeck segment makes one)."
                )
        if teacher.num_classes != student.num_classes:
            raise UserError(
                f"The teacher knows {teacher.num_classes} classes and the student learns "
                f"{student.num_classes}; choose a teacher that segments the same classes."
            )
        self.temperature = options.temperature
        self.own_weight = options.weight

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The loss of one batch; its part has the method's name."""
        del batch
        assert teacher is not None
        own, target = student.taps[LOGITS], teacher.taps[LOGITS].detach()
        if target.shape[-2:] != own.shape[-2:]:
            target = F.interpolate(
                target.float(), own.shape[-2:], mode="bilinear", align_corners=False
            )
        loss = self.compare(own, target)
        return Losses(total=loss, parts={self.name: loss.detach()})

    @abstractmethod
    def compare(self, own: Tensor, target: Tensor) -> Tensor:
        """The loss of the student's maps (B, C, h, w) against the teacher's."""


class ChannelWise(MapMethod):
    """``channel_wise_loss``: where in the image each class is, a softmax over the places."""

    Options = ChannelWiseOptions
    name = "channel_wise"

    def compare(self, own: Tensor, target: Tensor) -> Tensor:
        return channel_wise_loss(own, target, self.temperature)


class PixelKl(MapMethod):
    """What class each place is: T^2 KL(p_t || p_s), sum over classes, mean over places.

    The released code divides it by the number of classes, too (``pixel_divergence``).
    """

    Options = PixelKlOptions
    name = "pixel_kl"

    def compare(self, own: Tensor, target: Tensor) -> Tensor:
        return own.shape[1] * pixel_divergence(own, target, self.temperature)
