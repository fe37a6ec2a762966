"""Mixup, cutmix and label smoothing of a labelled batch, by timm's Mixup.

mixup: Beyond Empirical Risk Minimization (arXiv 1710.09412); CutMix (arXiv 1905.04899). One choice
and one lambda per batch, the partner is the batch reversed, and cutmix's lambda is corrected to the
box that was really cut.
"""

import dataclasses

import torch
from torch import Tensor

from limbeck.data.options import MixOptions
from limbeck.data.views import global_seed
from limbeck.errors import UserError
from limbeck.records import Batch


def mix(batch: Batch, options: MixOptions, num_classes: int, seed: int) -> Batch:
    """The batch mixed with itself reversed; a pure function of ``seed``.

    Labels (B,) become soft targets (B, num_classes) float32, smoothed also where nothing is mixed.
    Where the teacher sees other images than the student, both are mixed alike. Raises UserError
    for a batch without labels.
    """
    from timm.data.mixup import mixup_target

    if batch.labels is None:
        raise UserError("Mixup, cutmix and label smoothing need labels, and the data has none.")
    images, teacher_images, labels = batch.images, batch.teacher_images, batch.labels
    if options.mixup_alpha or options.cutmix_alpha:
        images, targets = _mix_images(images, labels, options, num_classes, seed)
        if batch.teacher_images is batch.images:
            teacher_images = images
        else:
            teacher_images, _ = _mix_images(teacher_images, labels, options, num_classes, seed)
    else:
        targets = mixup_target(labels, num_classes, smoothing=options.label_smoothing)
    return dataclasses.replace(batch, images=images, teacher_images=teacher_images, labels=targets)


def _mix_images(
    images: Tensor, labels: Tensor, options: MixOptions, num_classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    from timm.data.mixup import Mixup

    mixup = Mixup(
        mixup_alpha=options.mixup_alpha,
        cutmix_alpha=options.cutmix_alpha,
        prob=options.mix_prob,
        switch_prob=options.switch_prob,
        label_smoothing=options.label_smoothing,
        num_classes=num_classes,
    )
    # timm wants an even batch. The middle image of an odd one is its own partner, so it stands
    # there twice for the time being.
    size = len(images)
    rows = torch.arange(size, device=images.device)
    if size % 2:
        rows = torch.cat([rows[: size // 2 + 1], rows[size // 2 :]])
    is_first = torch.ones(len(rows), dtype=torch.bool, device=images.device)
    is_first[size // 2] = size % 2 == 0
    with global_seed(seed):
        # Indexing copies, which matters: timm mixes in place.
        mixed, targets = mixup(images[rows], labels[rows])
    return mixed[is_first], targets[is_first]
