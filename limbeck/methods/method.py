"""The contract of every distillation method: taps wanted, features in, losses out."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

from torch import nn

from limbeck.engine.health import Health
from limbeck.errors import UserError
from limbeck.methods.options import MethodOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import Keepsake
from limbeck.records import Batch, Features, Losses, Tap


class Method(nn.Module, ABC):
    """A distillation method; owns only its small projections (or its decoder).

    It is built as ``MethodClass(options, student, teacher)`` with the ``EncoderFacts`` of both
    (``teacher`` is None where no teacher was named) and is handed features; it never sees a model.
    ``student_taps`` may state the head count that it needs (``Tap.num_heads``): the recipe then
    re-splits that block of the student, and the count travels with the finished student.
    """

    Options: type[Any] = MethodOptions
    """The class of its options; a subclass of ``MethodOptions`` unless it is for fine-tuning."""

    own_weight: float = 1.0
    task_weight: float = 1.0
    """Beside a task the total is task_weight * task + own_weight * method. A ``task_weight`` of 0
    is for one that learns from the labels itself (``needs_labels``): it replaces the task's loss.
    """

    student_taps: tuple[Tap, ...]
    teacher_taps: tuple[Tap, ...]
    """Empty for a method without a teacher."""

    needs_same_grid: bool = True
    """False where the patches of student and teacher need not be the same places, because none are
    compared and the teacher is not told which to see. (Those who tap only logits need no word.)"""

    momentum: float | None = None
    """Where it is a number, the teacher is a copy of the student, which the distiller makes: it
    follows the student with this momentum at the start, rising to 1 along half a cosine."""

    compares_samples: bool = False
    """True where a sample's loss depends on the others of its micro-batch: steps then can't be
    accumulated."""

    pairs_samples: bool = False
    """True where the images of a micro-batch are mixed in pairs, 0 with 1, 2 with 3 and so on:
    micro-batches then hold an even number, so that any number of processes has the same pairs."""

    takes_soft_labels: bool = False
    """True where ``Features.soft_labels`` will do for the teacher's Tap("logits"): it can then be
    trained from stored class probabilities."""

    top_k: int | None = None
    """Such a method's: how many class probabilities it wants of an image; None takes what it
    gets."""

    needs_labels: bool = False
    """True where it learns from ``Batch.labels`` too; they must be the teacher's classes."""

    health: Health | None = None
    """Where its losses state ``at_zero``: how low they should get, and why they may not."""

    def prepare(self, batch: Batch) -> Batch:
        """Set what both sides must share (``ids_keep``), drawn from the batch's view seeds."""
        return batch

    def shown_to_teacher(self) -> dict[str, Any] | None:
        """What ``prepare`` shows the teacher of a view, as plain JSON data; {} is all of it.

        Together with the view's seed: two methods that say the same show the same. None where it is
        not known, and the teacher's inner tensors then can't be stored.
        """
        return {} if type(self).prepare is Method.prepare else None

    def recall(self, kept: dict[str, Keepsake]) -> None:
        """Go on with what the student's start brings beside its weights; called once, when built.

        ``kept`` by name, empty for a fresh student: what ``keepsakes`` gave in an earlier run, or
        what a published file has. Raises UserError for what does not fit.
        """
        del kept

    def keepsakes(self) -> dict[str, Keepsake]:
        """What of its own weights is kept beside the finished student, by name; usually nothing."""
        return {}

    def after_step(self, step: int, total_steps: int) -> None:
        """Change what is not trained (a momentum head, a mean) after each optimiser step.

        ``step`` counts those done. What changes must be parameters or buffers, to be saved.
        """
        del step, total_steps

    @abstractmethod
    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The losses of one batch; gradients flow to ``student`` and the method's own weights."""


class AsSeen(Method):
    """A method whose teacher sees exactly what the student does: it answers to these pixels."""

    def prepare(self, batch: Batch) -> Batch:
        """Show the teacher the student's images."""
        return replace(batch, teacher_images=batch.images)


def check_same_classes(student: EncoderFacts, teacher: EncoderFacts) -> None:
    """Raise UserError for a teacher without a classifier of as many classes as the student's."""
    check_classifies(teacher)
    if teacher.num_classes != student.num_classes:
        raise UserError(
            f"The teacher knows {teacher.num_classes} classes and the student learns "
            f"{student.num_classes}; choose a teacher that was fine-tuned on the same classes."
        )


def check_classifies(teacher: EncoderFacts) -> None:
    """Raise UserError for a teacher without a classifier of images."""
    if teacher.has_maps:
        raise UserError(
            f"The teacher {teacher.origin.get('source', '')} tells the classes of pixels, and here "
            "those of images are learnt; choose a classifier."
        )
    if not teacher.num_classes:
        raise UserError(
            f"The teacher {teacher.origin.get('source', '')} has no classifier; fine-tune it first "
            "(limbeck finetune --student TEACHER --data LABELLED_IMAGES)."
        )
