"""The contract of every distillation method: taps wanted, features in, losses out."""

from abc import ABC, abstractmethod

from torch import nn

from limbeck.methods.options import MethodOptions
from limbeck.records import Batch, Features, Losses, Tap


class Method(nn.Module, ABC):
    """A distillation method; owns only its small projections (or its decoder).

    It is built as ``MethodClass(options, student, teacher)`` with the ``EncoderFacts`` of both
    (``teacher`` is None where no teacher was named) and is handed features; it never sees a model.
    ``student_taps`` may state the head count that it needs (``Tap.num_heads``): the recipe then
    re-splits that block of the student, and the count travels with the finished student.
    """

    Options: type[MethodOptions] = MethodOptions
    """The class of its options."""

    student_taps: tuple[Tap, ...]
    teacher_taps: tuple[Tap, ...]
    """Empty for a method without a teacher."""

    def prepare(self, batch: Batch) -> Batch:
        """Set what both sides must share (``ids_keep``), drawn from the batch's view seeds."""
        return batch

    @abstractmethod
    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The losses of one batch; gradients flow to ``student`` and the method's own weights."""
