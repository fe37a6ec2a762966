"""Losses that are plain functions of tensors."""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F


def patchify(
    images: Shaped[Tensor, "B C H W"], patch_size: int, *, is_channel_first: bool = False
) -> Shaped[Tensor, "B L pixels"]:
    """Cut images into patches, row by row.

    A patch's values are ordered row, column, channel (MAE), or channel, row, column (Hiera).
    """
    B, C, H, W = images.shape
    gh, gw = H // patch_size, W // patch_size
    x = images.reshape(B, C, gh, patch_size, gw, patch_size)
    inner = (1, 3, 5) if is_channel_first else (3, 5, 1)
    return x.permute(0, 2, 4, *inner).reshape(B, gh * gw, patch_size**2 * C)


def normalise_patches(patches: Float[Tensor, "B L pixels"]) -> Float[Tensor, "B L pixels"]:
    """Each patch by its own mean and unbiased variance, + 1e-6 (MAE's norm_pix_loss)."""
    deviation = patches - patches.mean(dim=-1, keepdim=True)
    # Not torch's var, which on a CPU takes ten times as long as the sum of squares.
    var = deviation.square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)
    return deviation / (var + 1e-6).sqrt()


def squared_error(
    student: Float[Tensor, "*axes"], teacher: Float[Tensor, "*axes"]
) -> Float[Tensor, ""]:
    """Mean squared error over all entries, in float32 or wider."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    return F.mse_loss(student.to(dtype), teacher.to(dtype))


def masked_l1_loss(
    prediction: Float[Tensor, "B L pixels"],
    target: Float[Tensor, "B L pixels"],
    is_masked: Bool[Tensor, "B L pixels"],
) -> Float[Tensor, ""]:
    """Mean absolute error over masked pixels alone, in float32 or wider (SimMIM)."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    error = (prediction.to(dtype) - target.to(dtype)).abs()
    return (error * is_masked).sum() / is_masked.sum()


def soft_cross_entropy(
    logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"] | Float[Tensor, "B C"]
) -> Float[Tensor, ""]:
    """Cross entropy against class indices or soft targets, mean over the batch.

    In float32 or wider.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if labels.dtype == torch.int64:
        return F.cross_entropy(wide, labels)
    return -(labels * wide.log_softmax(dim=-1)).sum(dim=-1).mean()


def divergence(
    student: Float[Tensor, "*axes C"], teacher: Float[Tensor, "*axes C"]
) -> Float[Tensor, ""]:
    """KL(t || s) of the softmaxes over the last axis, mean over the others, in float32 or wider.

    The teacher is taken as a constant.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    target = teacher.detach().to(dtype).log_softmax(dim=-1)
    own = student.to(dtype).log_softmax(dim=-1)
    return (target.exp() * (target - own)).sum(dim=-1).mean()


def logit_divergence(
    student: Float[Tensor, "B C"], teacher: Float[Tensor, "B C"], temperature: float
) -> Float[Tensor, ""]:
    """T^2 KL(t || s) of class probabilities, t = softmax(teacher / T), s = softmax(student / T).

    Sum over classes, mean over the batch, in float32 or wider. T^2 keeps the size of the gradients
    (arXiv 1503.02531). The teacher is taken as a constant.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    own, target = student.to(dtype) / temperature, teacher.to(dtype) / temperature
    return temperature**2 * divergence(own, target)


def normalised_divergence(
    student: Float[Tensor, "B C"],
    teacher: Float[Tensor, "B C"],
    targets: Int[Tensor, " B"],
    temperature: float,
    alpha: float,
) -> Float[Tensor, ""]:
    """-w log p_t - alpha T^2 sum over i other than t of q_i log s_i (NKD, arXiv 2303.13005).

    t is the target, p = softmax(student), w = softmax(teacher)_t at temperature 1; q and s are the
    softmaxes of teacher / T and student / T over all classes but t. Mean over the batch, in float32
    or wider; at least 2 classes. The teacher is taken as a constant.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    own, target = student.to(dtype), teacher.detach().to(dtype)
    place = targets[:, None]  # [B, 1]
    weight = target.softmax(dim=-1).gather(1, place)
    of_target = -weight * own.log_softmax(dim=-1).gather(1, place)
    is_target = torch.zeros_like(own, dtype=torch.bool).scatter(1, place, True)
    others = (target / temperature).masked_fill(is_target, -torch.inf).softmax(dim=-1)
    log_probs = (own / temperature).masked_fill(is_target, -torch.inf).log_softmax(dim=-1)
    # Filled again: 0 times the logarithm of 0 is no number.
    of_others = -(others * log_probs.masked_fill(is_target, 0.0)).sum(dim=-1, keepdim=True)
    return (of_target + alpha * temperature**2 * of_others).mean()


def whiten(features: Float[Tensor, "*axes D"]) -> Float[Tensor, "*axes D"]:
    """LayerNorm without affine weights over the channels (eps 1e-6), in float32 or wider."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.layer_norm(wide, wide.shape[-1:], eps=1e-6)


def feature_loss(
    student: Float[Tensor, "B N D"], teacher: Float[Tensor, "B N D"], beta: float
) -> Float[Tensor, ""]:
    """Smooth L1 of e = student - whiten(teacher), mean over all entries (TinyMIM section 3.2).

    0.5 e^2 / beta where abs(e) <= beta, else abs(e) - 0.5 beta. The teacher is taken as a constant.
    """
    return smooth_l1_error(student, whiten(teacher.detach()), beta)


def smooth_l1_error(
    student: Float[Tensor, "*axes"], teacher: Float[Tensor, "*axes"], beta: float
) -> Float[Tensor, ""]:
    """0.5 e^2 / beta where abs(e) < beta, else abs(e) - 0.5 beta; mean over all entries.

    e = student - teacher, in float32 or wider.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    return F.smooth_l1_loss(student.to(dtype), teacher.to(dtype), beta=beta)


def cosine_error(
    student: Float[Tensor, "*axes D"], teacher: Float[Tensor, "*axes D"]
) -> Float[Tensor, ""]:
    """1 - the cosine between the channels of each token, mean over tokens; 1 of a zero vector.

    In float32 or wider.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    return 1 - F.cosine_similarity(student.to(dtype), teacher.to(dtype), dim=-1).mean()


def similarity_divergence(
    student: Float[Tensor, "B L D1"], teacher: Float[Tensor, "B L D2"], temperature: float
) -> Float[Tensor, ""]:
    """KL(t || s) of the softmaxes of each token's cosines to all tokens of its image, over T.

    Mean over images and tokens, in float32 or wider. The teacher is taken as a constant.
    """
    own, target = _cosines(student), _cosines(teacher.detach())
    return divergence(own / temperature, target / temperature)


def similarity_error(
    student: Float[Tensor, "B L D1"], teacher: Float[Tensor, "B L D2"]
) -> Float[Tensor, ""]:
    """Mean squared error between the cosines of all pairs of tokens of an image (Gram matrices)."""
    return squared_error(_cosines(student), _cosines(teacher.detach()))


def _cosines(tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B L L"]:
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    with torch.autocast(tokens.device.type, enabled=False):
        directions = F.normalize(wide, dim=-1)
        return directions @ directions.mT


def channel_divergence(
    student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"], temperature: float
) -> Float[Tensor, ""]:
    """KL(t || s) of softmaxes over channels, t = softmax(whiten(teacher) / T), mean over the batch.

    s = softmax(student / T); no factor T^2. The teacher is taken as a constant.
    """
    target = whiten(teacher) / temperature
    return divergence(student.to(target.dtype) / temperature, target)
