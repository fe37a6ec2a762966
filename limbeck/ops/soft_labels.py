"""Class probabilities of which the K largest are stated, and the loss that learns from them.

TinyViT, arXiv 2207.10666: what is left of the probability is spread evenly over the other classes.
What we do differently: the remainder is stated, not found as 1 minus the K probabilities (which
their rounding makes negative), and the loss never builds a target as wide as there are classes.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.records import SoftLabels


def top_k(logits: Float[Tensor, "B C"], k: int | None = None) -> SoftLabels:
    """The ``k`` largest of softmax(logits), in float32 or wider; all C where ``k`` is None or more.

    Logarithms of probabilities do as well as logits. Of equal ones torch chooses.
    """
    num_classes = logits.shape[1]
    k = num_classes if k is None else min(k, num_classes)
    all_probs = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)
    probs, classes = all_probs.topk(k, dim=1)
    # Not 1 - sum(probs), which rounding makes of a small remainder what it likes.
    rest = all_probs.scatter_(1, classes, 0.0).sum(dim=1)
    return SoftLabels(probs, classes, rest, num_classes)


def spread(rest: Float[Tensor, "*B"], num_others: int) -> Float[Tensor, "*B"]:
    """The share of each of ``num_others`` classes in the rest, which counts as 0 if negative."""
    return rest.clamp(min=0) / num_others if num_others else torch.zeros_like(rest)


def soften(labels: SoftLabels, temperature: float) -> SoftLabels:
    """p^(1 / T) of every class, those that share the rest included, normalised again.

    What softmax(logits / T) would be, as far as the labels tell. Zeros stay zeros.
    """
    if temperature == 1:
        return labels
    probs = labels.probs.pow(1 / temperature)
    num_others = labels.num_classes - labels.classes.shape[1]
    rest = spread(labels.rest, num_others).pow(1 / temperature) * num_others
    total = probs.sum(dim=1) + rest
    return SoftLabels(probs / total[:, None], labels.classes, rest / total, labels.num_classes)


def take(labels: SoftLabels, rows: Int[Tensor, " n"] | slice) -> SoftLabels:
    """The labels of these images, in this order."""
    return replace(
        labels, probs=labels.probs[rows], classes=labels.classes[rows], rest=labels.rest[rows]
    )


def sparse_cross_entropies(
    student_logits: Float[Tensor, "B C"], labels: SoftLabels
) -> Float[Tensor, " B"]:
    """-[sum_k v_k lp_k + m (sum_all lp - sum_k lp_k)] of each image, in float32 or wider.

    lp = log_softmax(student_logits), v_k the stated probabilities, m = rest / (C - K) that of every
    other class, the rest taken as 0 where it is negative. Differentiable once, by the logits.
    """
    base = spread(labels.rest, labels.num_classes - labels.classes.shape[1])
    return _SparseCrossEntropy.apply(
        student_logits, labels.classes, labels.probs - base[:, None], base
    )


def total_variation(first: SoftLabels, second: SoftLabels) -> Float[Tensor, " B"]:
    """Half of sum |p - q| over all classes, 0..1, without a dense (B, C) tensor."""
    left, right = (
        spread(each.rest, each.num_classes - each.probs.shape[1]) for each in (first, second)
    )
    is_same = first.classes[:, :, None] == second.classes[:, None, :]  # [B, K, K]
    q_of_first = torch.where(
        is_same.any(2), (is_same * second.probs[:, None, :]).sum(2), right[:, None]
    )
    is_second_alone = ~is_same.any(1)
    alone = ((second.probs - left[:, None]).abs() * is_second_alone).sum(1)
    num_unstated = first.num_classes - first.probs.shape[1] - is_second_alone.sum(1)
    stated = (first.probs - q_of_first).abs().sum(1) + alone
    return 0.5 * (stated + num_unstated * (left - right).abs())


class _SparseCrossEntropy(torch.autograd.Function):
    """-sum_c y_c log_softmax(s)_c of y = base + excess at the classes; gradient sum(y) p - y.

    The one array as large as the logits is p = softmax(s), which becomes the gradient in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Float[Tensor, "B C"],
        classes: Int[Tensor, "B K"],
        excess: Float[Tensor, "B K"],
        base: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        excess, base = excess.to(wide), base.to(wide)
        p = torch.softmax(logits, dim=1, dtype=wide)
        # Where p is largest it is at least 1 / C, so its logarithm is as good as a log-softmax.
        log_sum = logits.amax(dim=1) - p.amax(dim=1).log()
        stated = ((logits.gather(1, classes) - log_sum[:, None]) * excess).sum(dim=1)
        every = logits.sum(dim=1, dtype=wide) - log_sum * logits.shape[1]
        ctx.save_for_backward(logits, classes, excess, base)
        ctx.p = p if ctx.needs_input_grad[0] else None
        return -stated - base * every

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, " B"]) -> tuple[Tensor, None, None, None]:
        logits, classes, excess, base = ctx.saved_tensors
        p, ctx.p = ctx.p, None
        if p is None:  # the graph was retained, and this is not its first time
            p = torch.softmax(logits, dim=1, dtype=excess.dtype)
        whole, base = (excess.sum(dim=1) + base * logits.shape[1]) * grad, base * grad
        # Not addcmul, which takes three times as long where it broadcasts on a CPU.
        p.mul_(whole[:, None]).sub_(base[:, None])
        p.scatter_add_(1, classes, excess * -grad[:, None])
        return p.to(logits.dtype), None, None, None
