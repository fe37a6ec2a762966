"""Losses of dense predictions: what a teacher of segmentation or detection hands on.

As Generic-to-Specific Distillation of Masked Autoencoders, arXiv 2302.14771, has them in its second
stage: Channel-wise Knowledge Distillation for Dense Prediction (CWD, arXiv 2011.13256) and
Distilling Object Detectors with Feature Richness (FRS, arXiv 2111.00674). All sums are in float32,
of probabilities too, for which half precision is too coarse.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def channel_wise_loss(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """CWD: T^2 times the cross entropy of softmaxes over the places, mean over images and channels.

    Of the maps / T of each image and channel (class logits, say). It is no KL: of equal maps it is
    the teacher's entropy, at most T^2 ln(H W), not 0.
    """
    target = (teacher.float().flatten(2) / temperature).softmax(-1)  # [B, C, H W]
    own = (student.float().flatten(2) / temperature).log_softmax(-1)
    return temperature**2 * -(target * own).sum(-1).mean()


def pixel_divergence(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """T^2 KL(teacher || student) of the softmaxes over classes, as released: mean over all values.

    So it is the mean over places, divided by the number of classes.
    """
    target = (teacher.float() / temperature).log_softmax(1)
    own = (student.float() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(own, target, reduction="none", log_target=True).mean()


_LEAST = 1e-30  # where a teacher sees nothing at all


def feature_richness_losses(
    student_maps: Sequence[Float[Tensor, "b c _ _"]],
    teacher_maps: Sequence[Float[Tensor, "b c _ _"]],
    student_objectness: Sequence[Float[Tensor, "b a _ _"]],
    teacher_objectness: Sequence[Float[Tensor, "b a _ _"]],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """FRS over the levels of a pyramid: how far maps are apart, and the objectness of anchors.

    ``objectness`` are logits, one per anchor. A place weighs as much as the teacher's likeliest
    anchor there; the squared error is summed over channels, the binary cross entropy of the
    probabilities over anchors, both over places, and divided by the sum of the weights; levels are
    added. Of equal maps the first is 0, the second the teacher's entropy. The weights are those of
    this process's images, as published. Raises ValueError for numbers of levels that differ.
    """
    of_maps, of_anchors = [], []
    for own, target, own_logits, logits in zip(
        student_maps, teacher_maps, student_objectness, teacher_objectness, strict=True
    ):
        probs = logits.detach().float().sigmoid()  # [B, A, H, W]
        weights = probs.amax(dim=1)  # [B, H, W]
        errors = (target.detach().float() - own.float()).square().sum(dim=1)
        entropies = F.binary_cross_entropy_with_logits(own_logits.float(), probs, reduction="none")
        whole = weights.sum().clamp(min=_LEAST)
        of_maps.append((weights * errors).sum() / whole)
        of_anchors.append((weights * entropies.sum(dim=1)).sum() / whole)
    return torch.stack(of_maps).sum(), torch.stack(of_anchors).sum()
