"""Losses that are plain functions of tensors."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def patchify(images: Float[Tensor, "B C H W"], patch_size: int) -> Float[Tensor, "B L pixels"]:
    """Cut images into patches, row by row; a patch's values are ordered row, column, channel."""
    B, C, H, W = images.shape
    gh, gw = H // patch_size, W // patch_size
    x = images.reshape(B, C, gh, patch_size, gw, patch_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, gh * gw, patch_size**2 * C)


def normalise_patches(patches: Float[Tensor, "B L pixels"]) -> Float[Tensor, "B L pixels"]:
    """Each patch by its own mean and unbiased variance, + 1e-6 (MAE's norm_pix_loss)."""
    mean = patches.mean(dim=-1, keepdim=True)
    var = patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (var + 1e-6).sqrt()


def masked_pixel_loss(
    prediction: Float[Tensor, "B L pixels"],
    target: Float[Tensor, "B L pixels"],
    is_masked: Bool[Tensor, "B L"],
) -> Float[Tensor, ""]:
    """Mean squared error over the pixels of masked patches only, mean over all of them (MAE)."""
    error = (prediction.float() - target.float()).square().mean(dim=-1)
    return (error * is_masked).sum() / is_masked.sum()


def soft_cross_entropy(
    logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"] | Float[Tensor, "B C"]
) -> Float[Tensor, ""]:
    """Cross entropy against class indices or soft targets, mean over the batch, in float32."""
    if labels.dtype == torch.int64:
        return F.cross_entropy(logits.float(), labels)
    return -(labels * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()
