"""Attention scores: heads mixed.

A Closer Look at Self-Supervised Lightweight Vision Transformers, arXiv 2205.14443.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def mix_heads(
    scores: Float[Tensor, "B nh N M"], weight: Float[Tensor, "out nh"]
) -> Float[Tensor, "B out N M"]:
    """Each output a weighted sum of heads: sum over h' of weight[h, h'] scores[h'].

    In float32 or wider, also under autocast: the scores are sums that half precision has rounded
    once.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    with torch.autocast(scores.device.type, enabled=False):
        mixed = weight.to(dtype) @ scores.to(dtype).flatten(2)  # [B, out, N * M]
    return mixed.unflatten(2, scores.shape[2:])
