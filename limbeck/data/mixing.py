"""Mixup, cutmix and label smoothing of a labelled batch, by timm's Mixup; and of pairs of views.

mixup: Beyond Empirical Risk Minimization (arXiv 1710.09412); CutMix (arXiv 1905.04899). Of a batch:
one choice and one lambda, the partner is the batch reversed. Of pairs: each its own, from the seeds
of its two views (TinyViT, arXiv 2207.10666). Cutmix's lambda is corrected to the box that was
really cut.
"""

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from limbeck.data.options import MixOptions, PairMixOptions
from limbeck.data.released_views import draw_integer, released_generator
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


def mix_pairs(batch: Batch, options: PairMixOptions) -> Batch:
    """The student's images 0 and 1 mixed with each other, 2 and 3, and so on; an odd last one not.

    A pure function of the view seeds: a pair's is the XOR of its two, and its draws are those of
    TinyViT's released code, in this order: whether it is mixed; where both are on, whether by
    cutmix; lambda from Beta(alpha, alpha); for cutmix the centre of the box, row first.
    ``Batch.mix_shares`` says how much of each image is its own. Labels and the teacher's images
    stay as they are.
    """
    images, seeds = batch.images.clone(), batch.view_seeds.tolist()
    shares = [1.0] * len(images)
    for first in range(0, len(images) - 1, 2):
        rng = released_generator(seeds[first] ^ seeds[first + 1])
        pair = images[first : first + 2]  # mixed in place
        shares[first : first + 2] = [_mix_pair(pair, options, rng)] * 2
    return dataclasses.replace(
        batch, images=images, mix_shares=torch.tensor(shares, device=images.device)
    )


def _mix_pair(pair: Tensor, options: PairMixOptions, rng: np.random.Generator) -> float:
    """Mix (2, 3, H, W) in place; returns how much of each is its own."""
    if rng.random() >= options.mix_prob:
        return 1.0
    is_cutmix = options.cutmix_alpha > 0
    if options.mixup_alpha > 0 and options.cutmix_alpha > 0:
        is_cutmix = rng.random() < options.switch_prob
    alpha = options.cutmix_alpha if is_cutmix else options.mixup_alpha
    share = float(rng.beta(alpha, alpha))
    if not is_cutmix:
        pair.copy_(share * pair + (1 - share) * pair.flip(0))
        return share
    height, width = pair.shape[2:]
    rows, columns = (_draw_span(rng, side, math.sqrt(1 - share)) for side in (height, width))
    pair[:, :, rows, columns] = pair[:, :, rows, columns].flip(0)  # flip copies
    cut = (rows.stop - rows.start) * (columns.stop - columns.start)
    return 1 - cut / (height * width)


def _draw_span(rng: np.random.Generator, side: int, part: float) -> slice:
    """A part of a side around a random centre, as far as it lies within."""
    half, centre = int(side * part) // 2, draw_integer(rng, 0, side - 1)
    return slice(max(0, centre - half), min(side, centre + half))
