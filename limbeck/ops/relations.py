"""Token relations of a Transformer block and the loss between two blocks' relations.

TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, arXiv 2301.01296, section 3. What
we do differently: the N x N maps of all heads are never held. The loss runs over a few maps (or
rows of one) at a time and its gradient is found there by hand, so that memory grows with N, not
with N squared, and each chunk is still in the cache when it is needed again.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**22}
"""Scores at a time. On a CPU 1 MiB of float32, a core's L2 cache: of 2**14 to 2**22 the best over
197 to 1,601 tokens. On a GPU, a guess at what outlasts the launch of its kernels."""


def relation_loss(
    student_a: Float[Tensor, "B nh N hd_student"],
    student_b: Float[Tensor, "B nh N hd_student"],
    teacher_a: Float[Tensor, "B nh N hd_teacher"],
    teacher_b: Float[Tensor, "B nh N hd_teacher"],
    *,
    softmax: bool = True,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """How far the student's relation of a and b (QK, VV, QQ, KK) is from the teacher's.

    Scores are A_m B_m^T / sqrt(hd) per head m, each network with its own head dim hd.

    With softmax, KL(teacher || student) of R_m = softmax_row(scores / temperature):
    loss = 1 / (B * nh * N) * sum over batch, heads, queries, keys of t * (log t - log s), summed
    over keys, mean over batch, heads and queries; no factor temperature^2. (TinyMIM section 3.2.)
    Of log-softmaxes, not logs of softmaxes: a student probability that underflows would give
    infinity.

    Without, the mean over (B, nh, N, N) of the squared difference of the scores: the paper leaves
    the loss open, so this is our choice.

    The teacher's side is taken as a constant. So is the gradient: with create_graph it comes
    without a graph of its own, and there is no second derivative.
    Raises ValueError for a temperature that is not positive, or other than 1 without softmax.
    """
    if not temperature > 0 or (temperature != 1 and not softmax):
        raise ValueError(f"temperature {temperature}: must be above 0, and 1 without softmax")
    needs_grad = torch.is_grad_enabled() and (student_a.requires_grad or student_b.requires_grad)
    sides = (student_a, student_b, teacher_a.detach(), teacher_b.detach())
    loss, _, _ = _relation_loss(*sides, softmax, float(temperature), needs_grad)
    return loss


# An operator of its own, for torch.compile: tracing would unroll the loop over chunks, and compile
# again for every batch size.
@torch.library.custom_op("limbeck::relation_loss", mutates_args=())
def _relation_loss(
    student_a: Tensor,
    student_b: Tensor,
    teacher_a: Tensor,
    teacher_b: Tensor,
    softmax: bool,
    temperature: float,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and, where needed (else empty), its gradients with respect to the student's a, b."""
    dtype = torch.promote_types(student_a.dtype, torch.float32)
    sides = (student_a, student_b, teacher_a, teacher_b)
    a, b, t_a, t_b = (side.to(dtype).flatten(0, 1) for side in sides)  # [B * nh, N, hd] each
    num_maps, num_rows, _ = a.shape
    num_terms = num_maps * num_rows * (1 if softmax else num_rows)
    scale = a.shape[-1] ** -0.5 / temperature
    t_scale = t_a.shape[-1] ** -0.5 / temperature
    grad_scale = scale / max(1, num_terms)
    compare = _divergence if softmax else _squared_error

    total = torch.zeros((), dtype=torch.float64, device=a.device)
    grad_a, grad_b = (torch.empty_like(side if needs_grad else side[:0]) for side in (a, b))
    with torch.autocast(a.device.type, enabled=False):
        for maps, rows in _chunks(num_maps, num_rows, CHUNK_ELEMENTS[a.device.type]):
            scores = _product(a[maps, rows], b[maps].mT, scale)  # [maps, rows, N]
            value, grad = compare(scores, _product(t_a[maps, rows], t_b[maps].mT, t_scale))
            total += value
            if needs_grad:
                grad_a[maps, rows].baddbmm_(grad, b[maps], beta=0, alpha=grad_scale)
                is_added = rows.start > 0  # to the rows before, of the same map
                grad_b[maps].baddbmm_(grad.mT, a[maps, rows], beta=is_added, alpha=grad_scale)
    loss = (total / num_terms).to(dtype)  # of nothing NaN, as any mean
    if not needs_grad:
        return loss, grad_a, grad_b
    return loss, grad_a.view(student_a.shape), grad_b.view(student_b.shape)


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * a @ b without a copy of a or b."""
    return a.new_empty(*a.shape[:2], b.shape[2]).baddbmm_(a, b, beta=0, alpha=scale)


def _chunks(num_maps: int, num_rows: int, num_elements: int) -> Iterator[tuple[slice, slice]]:
    """Maps at a time, or rows of one map where a whole one is too large."""
    maps = max(1, num_elements // max(1, num_rows**2))
    rows = max(1, min(num_rows, num_elements // max(1, num_rows)))
    for first_map in range(0, num_maps, maps):
        for first_row in range(0, num_rows, rows):
            yield slice(first_map, first_map + maps), slice(first_row, first_row + rows)


def _divergence(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of t (log t - log s) over a chunk's scores, and its gradient: s - t."""
    student, teacher = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    probability = teacher.exp()
    value = teacher.sub_(student).mul_(probability).sum()
    return value, student.exp_().sub_(probability)


def _squared_error(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of (s - t)^2 over a chunk's scores, and its gradient: 2 (s - t)."""
    difference = student.sub_(teacher)
    return difference.square().sum(), difference.mul_(2)


@_relation_loss.register_fake
def _(student_a: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    needs_grad = others[-1]
    dtype = torch.promote_types(student_a.dtype, torch.float32)
    shape = student_a.shape if needs_grad else (0, *student_a.shape[2:])
    grad_a, grad_b = (student_a.new_empty(shape, dtype=dtype) for _ in range(2))
    return student_a.new_empty((), dtype=dtype), grad_a, grad_b


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, grad_a, grad_b = output
    ctx.mark_non_differentiable(grad_a, grad_b)
    ctx.save_for_backward(grad_a, grad_b)
    ctx.dtypes = inputs[0].dtype, inputs[1].dtype


@once_differentiable
def _scale_gradients(ctx: Any, grad_loss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    # In float32 until the end: a gradient scaler's factor lifts what half precision would lose.
    grad_a, grad_b = (
        (grad * grad_loss).to(dtype) if is_needed else None
        for grad, dtype, is_needed in zip(
            ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[:2], strict=True
        )
    )
    return grad_a, grad_b, *[None] * 5


_relation_loss.register_autograd(_scale_gradients, setup_context=_keep_gradients)
