"""Losses between views of the same image, plain functions of tensors in float32 or wider."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(
    queries: Float[Tensor, "B D"], keys: Float[Tensor, "K D"], first: int, temperature: float
) -> Float[Tensor, ""]:
    """2 T times the cross entropy of finding each query's own key among all (arXiv 2104.02057).

    With q and k of length one: -2T log(exp(q_i k_j / T) / sum_n exp(q_i k_n / T)), j = first + i,
    mean over the queries. The keys are taken as constants.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    q, k = F.normalize(queries.to(dtype), dim=1), F.normalize(keys.detach().to(dtype), dim=1)
    own = torch.arange(first, first + len(q), device=q.device)
    return 2 * temperature * F.cross_entropy(q @ k.T / temperature, own)


def centred_cross_entropy(
    student: Float[Tensor, "B K"],
    teacher: Float[Tensor, "B K"],
    center: Float[Tensor, " K"],
    temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """- sum_k p_k log q_k, mean over the batch (DINO, arXiv 2104.14294).

    p = softmax((teacher - center) / teacher_temperature), a constant; q = softmax(student /
    temperature).
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    target = ((teacher.detach().to(dtype) - center) / teacher_temperature).softmax(dim=1)
    own = (student.to(dtype) / temperature).log_softmax(dim=1)
    return -(target * own).sum(dim=1).mean()
