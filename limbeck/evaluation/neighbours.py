"""Without labels: do student and teacher find the same images alike?

Two numbers between two sets of embeddings of the same images: the share of common nearest
neighbours, which looks at the local order, and linear CKA (Kornblith et al., "Similarity of Neural
Network Representations Revisited", arXiv 1905.00414), which looks at the whole.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import UserError
from limbeck.evaluation.scores import Score, score_of

CHUNK_ELEMENTS = 2**25  # 128 MiB of float32 similarities at a time


def nearest(
    queries: Tensor, bank: Tensor, k: int, *, is_self: bool = False
) -> tuple[Tensor, Tensor]:
    """Cosine similarities and bank indices, both (n, k), of the k nearest, nearest first.

    ``queries`` (n, D), ``bank`` (m, D). ``is_self``: both are the same images, and none counts as
    its own neighbour.
    """
    queries, bank = F.normalize(queries, dim=1), F.normalize(bank, dim=1)
    rows = max(1, CHUNK_ELEMENTS // len(bank))
    similarities, indices = [], []
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ bank.T
        if is_self:
            similarity.diagonal(start).fill_(-torch.inf)
        values, where = similarity.topk(k, dim=1)
        similarities.append(values)
        indices.append(where)
    return torch.cat(similarities), torch.cat(indices)


@dataclass(frozen=True)
class Agreement:
    """How alike two encoders see the same images.

    ``neighbours``: mean share of common neighbours among the k nearest of n images, with its
    interval over images; two unrelated encoders reach k / (n - 1). ``cka``: linear CKA, 0..1.
    """

    neighbours: Score
    cka: float


def agreement(student: Tensor, teacher: Tensor, *, k: int = 10) -> Agreement:
    """Agreement of features (n, D_s) and (n, D_t) of the same images in the same order.

    Raises UserError for fewer than three images; ``k`` is limited to a third of the others, because
    beyond that everybody is everybody's neighbour.
    """
    if len(student) != len(teacher):
        raise ValueError(f"{len(student)} student and {len(teacher)} teacher features.")
    if len(student) < 3:
        raise UserError(
            f"Agreement of neighbours needs three images or more, not {len(student)}; "
            "hold out more images."
        )
    others = len(student) - 1
    k = min(k, max(1, others // 3))
    _, of_student = nearest(student, student, k, is_self=True)
    _, of_teacher = nearest(teacher, teacher, k, is_self=True)
    is_common = (of_student[:, :, None] == of_teacher[:, None, :]).any(dim=2)  # [n, k]
    return Agreement(
        neighbours=score_of(
            is_common.float().mean(dim=1),
            f"share of the teacher's {k} nearest neighbours, among {others} other images",
        ),
        cka=linear_cka(student, teacher),
    )


def linear_cka(student: Tensor, teacher: Tensor) -> float:
    """Linear CKA of features X (n, D_s) and Y (n, D_t): |Y'X|^2 / (|X'X| |Y'Y|), columns centred.

    |.| is the Frobenius norm. 1 means equal up to rotation and scale; 0 also stands for features
    that are constant over the images.
    """
    # float64: the squares of large activations lose the small differences in float32.
    x = student.double() - student.double().mean(dim=0)
    y = teacher.double() - teacher.double().mean(dim=0)
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    return float((y.T @ x).square().sum() / scale) if scale > 0 else 0.0
