"""Token relations of a Transformer block and the loss between two blocks' relations.

TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, arXiv 2301.01296, section 3.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def relation_scores(
    a: Float[Tensor, "B nh N hd"], b: Float[Tensor, "B nh N hd"]
) -> Float[Tensor, "B nh N N"]:
    """Scaled products a b^T / sqrt(hd), in float32 or wider, autocast or not.

    ``a`` is scaled before the product: raw products overflow in half precision.
    """
    with torch.autocast(a.device.type, enabled=False):
        dtype = torch.promote_types(a.dtype, torch.float32)
        return (a.to(dtype) * a.shape[-1] ** -0.5) @ b.to(dtype).transpose(-2, -1)


def relation_loss(
    student_a: Float[Tensor, "B nh N hd_student"],
    student_b: Float[Tensor, "B nh N hd_student"],
    teacher_a: Float[Tensor, "B nh N hd_teacher"],
    teacher_b: Float[Tensor, "B nh N hd_teacher"],
) -> Float[Tensor, ""]:
    """KL(teacher || student) of the row-softmaxed relation of a and b (QK, VV, QQ, KK).

    R_m = softmax_row(A_m B_m^T / sqrt(hd)) per head m, each network with its own head dim hd;
    loss = 1 / (B * nh * N) * sum over batch, heads, queries, keys of t * (log t - log s): summed
    over keys, mean over batch, heads and queries; no temperature. (TinyMIM section 3.2.)
    The teacher's side is taken as a constant. log-softmax of the scores, not log of a softmax:
    a student probability that underflows would give infinity.
    """
    student = relation_scores(student_a, student_b).log_softmax(dim=-1)
    teacher = relation_scores(teacher_a, teacher_b).detach().log_softmax(dim=-1)
    return (teacher.exp() * (teacher - student)).sum(dim=-1).mean()
