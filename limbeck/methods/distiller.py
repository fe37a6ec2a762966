"""The one distiller: a student, a method, and a teacher that is a value."""

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.methods.follower import Follower
from limbeck.methods.method import Method
from limbeck.models.encoder import Encoder, EncoderFacts, check_taps
from limbeck.ops.schedules import cosine_momentum
from limbeck.records import LOGIT_KINDS, Batch, Features, Losses, Tap


@runtime_checkable  # the tests check types at run time
class Answering(Protocol):
    """A teacher, live or stored: a value, no module."""

    @property
    def facts(self) -> EncoderFacts:
        """The facts of who answers."""
        ...

    def answer(self, batch: Batch, taps: tuple[Tap, ...]) -> Features:
        """Its features of a batch that the method has prepared."""
        ...

    def check(self, method: Method) -> None:
        """Raise UserError unless it can answer what the method asks."""
        ...


@runtime_checkable
class TaskLoss(Protocol):
    """What is needed of a task: a ``limbeck.Task``, whose encoder is the student."""

    taps: tuple[Tap, ...]

    def loss(self, features: Features, batch: Batch) -> Losses:
        """The supervised losses of a batch from the taps of its features."""
        ...


class Distiller(nn.Module):
    """Student and method as one module for the loop; the teacher is at hand, not inside.

    Where the method states a momentum, a copy of the student that follows it is in the teacher's
    place. With a ``task`` the student runs once for both, and the total is the sum of both losses
    with the method's ``task_weight`` and ``own_weight``. The parts, weighted alike, add up to it.
    """

    def __init__(
        self,
        student: Encoder,
        method: Method,
        teacher: Answering | None,
        task: TaskLoss | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.method = method
        # Not the task itself: its encoder is the student, which would be saved twice.
        self.task_loss = None if task is None else task.loss
        task_taps = () if task is None else task.taps
        # A set in order: both may want the same.
        self.student_taps = tuple(dict.fromkeys((*method.student_taps, *task_taps)))
        self.teacher = teacher  # not a module, so nothing registers it
        # A module: unlike a teacher it changes, and has to be saved.
        self.follower = None if method.momentum is None else Follower(student)
        if self.follower is not None:
            check_taps(student, method.teacher_taps, "student")
        check_taps(student, self.student_taps, "student")
        is_alone = method.task_weight == 0 and method.needs_labels
        if task is not None and not (method.own_weight > 0 < method.task_weight or is_alone):
            raise UserError(
                f"{type(method).__name__} weights the task {method.task_weight:g} and itself "
                f"{method.own_weight:g}, which silences the labels or the teacher; state weights "
                "above 0, or a task_weight of 0 only if it needs_labels."
            )
        if teacher is not None:
            teacher.check(method)
            has_patches = any(tap.kind not in LOGIT_KINDS for tap in method.teacher_taps)
            own, theirs = student.facts.grid, teacher.facts.grid
            if has_patches and method.needs_same_grid and own != theirs:
                fitting = own[0] * teacher.facts.patch_size
                raise UserError(
                    f"The teacher sees a grid of {theirs[0]} x {theirs[1]} patches and the student "
                    f"one of {own[0]} x {own[1]}; set --teacher.img-size {fitting}."
                )

    def forward(self, batch: Batch) -> Losses:
        """Losses of one batch."""
        batch = self.method.prepare(batch)
        teacher = None
        if self.teacher is not None:
            teacher = self.teacher.answer(batch, self.method.teacher_taps)
        elif self.follower is not None:
            teacher = self.follower(batch.images, batch.teacher_ids_keep, self.method.teacher_taps)
        student = self.student(batch.images, batch.ids_keep, self.student_taps, batch.mask_token)
        if batch.local_images is not None:
            local = self.student.forward_small(batch.local_images, self.student_taps)
            student = replace(student, local=local)
        losses = self.method(student, teacher, batch)
        self._check_losses(losses)
        if self.task_loss is None:
            return losses
        own_weight, task_weight = self.method.own_weight, self.method.task_weight
        total = own_weight * losses.total
        parts = {name: own_weight * part for name, part in losses.parts.items()}
        if task_weight:
            task = self.task_loss(student, batch)
            total = task_weight * task.total + total
            parts = {name: task_weight * part for name, part in task.parts.items()} | parts
        return Losses(total, parts)

    def _check_losses(self, losses: object) -> None:
        name = type(self.method).__name__
        if not isinstance(losses, Losses):
            raise UserError(
                f"The method {name} returned a {type(losses).__name__}, not limbeck.Losses; see "
                "examples/own_method.py."
            )
        if losses.total.ndim or not losses.total.is_floating_point():
            raise UserError(
                f"The total of the losses of {name} is a tensor of shape "
                f"{tuple(losses.total.shape)} and {losses.total.dtype}, not one number; take its "
                "mean."
            )
        if torch.is_grad_enabled() and not losses.total.requires_grad:
            raise UserError(
                f"The total of the losses of {name} has no gradient, so nothing would be learnt; "
                "compute it from the student's features, without detach() or no_grad()."
            )

    def after_step(self, step: int, total_steps: int) -> None:
        """For the loop, after each optimiser step; ``step`` counts those done."""
        if self.follower is not None:
            assert self.method.momentum is not None
            momentum = cosine_momentum(step - 1, total_steps, self.method.momentum)
            self.follower.follow(self.student, momentum)
        self.method.after_step(step, total_steps)
