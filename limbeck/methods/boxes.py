"""What a detector hands on beside the boxes of the data: its pyramid, or what its places say.

Distilling Object Detectors with Feature Richness (FRS, arXiv 2111.00674), as G2SD's second stage
has it (arXiv 2302.14771), and, for detectors without anchors, every place's classes and box, by the
losses of Generalized Focal Loss (arXiv 2006.04388) and generalised IoU (arXiv 1902.09630). The
teacher sees exactly the student's images, filling included; its proposals and losses are never
computed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from limbeck.errors import UserError
from limbeck.methods.method import AsSeen
from limbeck.methods.options import DenseAnswersOptions, FeatureRichnessOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.dense import feature_richness_losses
from limbeck.ops.ranks import mean_over_ranks
from limbeck.records import Batch, Features, Losses, Tap


class FeatureRichness(AsSeen):
    """FRS: the maps of each level where the teacher sees objects, and where that is.

    Each level of the student's pyramid has a 3x3 convolution to the teacher's width, which is
    dropped afterwards; its own heads read what comes before that. Parts: "richness" and
    "objectness".
    """

    Options = FeatureRichnessOptions
    needs_same_grid = False  # but the same levels
    num_steps: Tensor

    def __init__(
        self,
        options: FeatureRichnessOptions,
        student: EncoderFacts,
        teacher: EncoderFacts | None,
    ) -> None:
        super().__init__()
        teacher = _checked(student, teacher)
        levels = range(len(student.level_strides))
        self.maps = tuple(Tap("pyramid", k) for k in levels)
        self.objectness = tuple(Tap("objectness", k) for k in levels)
        self.student_taps = self.teacher_taps = (*self.maps, *self.objectness)
        self.adapters = nn.ModuleList(
            nn.Conv2d(own, other, 3, padding=1)
            for own, other in zip(student.level_dims, teacher.level_dims, strict=True)
        )
        self.options = options
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    def after_step(self, step: int, total_steps: int) -> None:
        """Count the warm-up."""
        del total_steps
        self.num_steps.fill_(step)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The losses of one batch."""
        del batch
        assert teacher is not None
        _check_sizes(student, teacher, self.maps)
        own = [
            adapter(student.taps[tap])
            for adapter, tap in zip(self.adapters, self.maps, strict=True)
        ]
        pairs = [(student.taps[tap], teacher.taps[tap]) for tap in self.objectness]
        of_maps, of_anchors = feature_richness_losses(
            own, [teacher.taps[tap] for tap in self.maps], *zip(*map(_alike, pairs), strict=True)
        )
        warmup = self.options.warmup_steps
        rise = (self.num_steps.float() / max(1, warmup)).clamp(max=1) if warmup else 1.0
        parts = {
            "richness": rise * self.options.feature_weight * of_maps,
            "objectness": rise * self.options.objectness_weight * of_anchors,
        }
        total = parts["richness"] + parts["objectness"]
        return Losses(total, {name: part.detach() for name, part in parts.items()})


def _alike(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Objectness of as many anchors on both sides: of other numbers that of the likeliest."""
    if pair[0].shape[1] == pair[1].shape[1]:
        return pair
    return pair[0].amax(1, keepdim=True), pair[1].amax(1, keepdim=True)


class DenseAnswers(AsSeen):
    """Every place's classes, and its box where the teacher sees an object.

    Classes: |p_t - p_s|^sharpness times the binary cross entropy of p_s to p_t, summed over places
    and classes. Boxes: 1 - GIoU with the teacher's, weighted by its likeliest class's probability.
    Both are divided by the sum of these weights, of all processes. Parts: "taught_class" and
    "taught_box".
    """

    Options = DenseAnswersOptions
    needs_same_grid = False  # but the same levels

    def __init__(
        self, options: DenseAnswersOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__()
        teacher = _checked(student, teacher)
        if student.num_classes != teacher.num_classes:
            raise UserError(
                f"The teacher knows {teacher.num_classes} classes and the student learns "
                f"{student.num_classes}; choose a teacher that finds the same classes."
            )
        self.options = options
        # Of patches of other sizes the same place is another number of pixels.
        self.scale = student.level_strides[0] / teacher.level_strides[0]
        levels = range(len(student.level_strides))
        self.classes = tuple(Tap("class_maps", k) for k in levels)
        self.boxes = tuple(Tap("box_maps", k) for k in levels)
        self.student_taps = self.teacher_taps = (*self.classes, *self.boxes)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The losses of one batch."""
        del batch
        assert teacher is not None
        _check_sizes(student, teacher, self.classes)
        own, target = (
            torch.cat([each.taps[tap].float().flatten(2) for tap in self.classes], 2)  # [B, C, P]
            for each in (student, teacher)
        )
        own_box, box = (
            torch.cat([each.taps[tap].float().flatten(2) for tap in self.boxes], 2)  # [B, 4, P]
            for each in (student, teacher)
        )
        probs = target.detach().sigmoid()
        weights = probs.amax(1)  # [B, P]
        whole = mean_over_ranks(weights.sum()).clamp(min=1)
        apart = (probs - own.sigmoid()).abs().pow(self.options.sharpness)
        entropies = F.binary_cross_entropy_with_logits(own, probs, reduction="none")
        overlap = generalized_box_iou_loss(_corners(own_box), _corners(box.detach() * self.scale))
        parts = {
            "taught_class": self.options.class_weight * (apart * entropies).sum() / whole,
            "taught_box": self.options.box_weight * (weights.flatten() * overlap).sum() / whole,
        }
        total = parts["taught_class"] + parts["taught_box"]
        return Losses(total, {name: part.detach() for name, part in parts.items()})


def _corners(sides: Tensor) -> Tensor:
    """Boxes (B P, 4) around a common centre, of distances (B, 4, P): all that IoU depends on."""
    left, top, right, bottom = sides.unbind(1)
    return torch.stack((-left, -top, right, bottom), -1).flatten(0, 1)


def _check_sizes(student: Features, teacher: Features, taps: tuple[Tap, ...]) -> None:
    """Grids of odd numbers are halved up by some encoders, down by others."""
    if any(student.taps[tap].shape[-2:] != teacher.taps[tap].shape[-2:] for tap in taps):
        raise UserError(
            "The maps of student and teacher differ in size at this --img-size; choose a multiple "
            "of 64."
        )


def _checked(student: EncoderFacts, teacher: EncoderFacts | None) -> EncoderFacts:
    if teacher is None:
        raise UserError("A detector's answers need a teacher; name one with --teacher.")
    for facts, role in ((student, "student"), (teacher, "teacher")):
        if not facts.has_boxes:
            raise UserError(
                f"The {role} finds no objects; choose one that does (limbeck detect makes one)."
            )
    own, other = (
        [facts.grid_of(stride) for stride in facts.level_strides] for facts in (student, teacher)
    )
    if own != other:
        said = [", ".join(f"{rows} x {columns}" for rows, columns in each) for each in (own, other)]
        raise UserError(
            f"The student has places in grids of {said[0]} and the teacher of {said[1]}; choose a "
            "teacher with the same kind of head, trained at the --img-size that gives it the same."
        )
    return teacher
