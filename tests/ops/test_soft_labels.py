"""Sparse soft labels: what is kept, their temperature, and the loss against the dense formula."""

from dataclasses import replace

import pytest
import torch

from limbeck.ops.soft_labels import (
    soften,
    sparse_cross_entropies,
    top_k,
    total_variation,
)
from limbeck.records import SoftLabels
from tests.ops.labels import dense_target


def labels_of(num_images=4, num_classes=9, k=3, **changes):
    labels = top_k(2 * torch.randn(num_images, num_classes, dtype=torch.float64), k)
    return replace(labels, **changes)


def dense_formula(logits, labels):
    """-sum_c y_c log_softmax(s)_c, class by class, of each image."""
    losses = []
    for s, y in zip(logits, dense_target(labels), strict=True):
        log_sum = (s - s.max()).exp().sum().log() + s.max()
        losses.append(-sum(y[c] * (s[c] - log_sum) for c in range(len(s))))
    return torch.stack(losses)


CASES = {
    "K of C": labels_of,
    "K = 1": lambda: labels_of(k=1),
    "K = C": lambda: labels_of(k=9),
    "all": lambda: labels_of(k=None),
    "negative rest": lambda: labels_of(rest=torch.tensor([-3e-4, -1e-3, 0.0, 0.1]).double()),
    "zeros": lambda: SoftLabels(
        torch.tensor([[1.0, 0.0, 0.0]] * 4).double(),
        torch.tensor([[4, 0, 8]] * 4),
        torch.zeros(4).double(),
        9,
    ),
}
cases = pytest.mark.parametrize("case", CASES)


def test_the_largest_are_kept_and_the_rest_is_what_is_left():
    logits = torch.randn(5, 12) * 3
    labels = top_k(logits, 4)
    probs = logits.softmax(1)
    expected, classes = probs.sort(dim=1, descending=True)
    torch.testing.assert_close(labels.probs, expected[:, :4])
    assert torch.equal(labels.classes, classes[:, :4]) and labels.num_classes == 12
    torch.testing.assert_close(labels.rest, expected[:, 4:].sum(1))
    assert labels.probs.dtype == labels.rest.dtype == torch.float32


def test_a_rest_far_below_float32s_error_of_one_is_kept():
    logits = torch.tensor([[20.0, 0.0, -1.0, -2.0]])
    exact = logits.double().softmax(1)[:, 2:].sum(1)
    torch.testing.assert_close(top_k(logits, 2).rest.double(), exact, rtol=1e-5, atol=0)


def test_half_precision_is_computed_in_float32_and_the_teachers_logits_stay_as_they_are():
    logits = torch.randn(2, 8).bfloat16()
    before = logits.clone()
    assert top_k(logits, 3).probs.dtype == torch.float32
    assert torch.equal(logits, before)
    assert top_k(logits, 99).classes.shape == (2, 8)


@cases
def test_the_loss_is_the_dense_formula_in_float64(case):
    labels, logits = CASES[case](), 3 * torch.randn(4, 9, dtype=torch.float64)
    losses = sparse_cross_entropies(logits, labels)
    torch.testing.assert_close(losses, dense_formula(logits, labels), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(sparse_cross_entropies(logits, labels).mean(), losses.mean())


@cases
def test_the_gradient_is_that_of_finite_differences(case):
    labels, logits = CASES[case](), torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: sparse_cross_entropies(s, labels), logits)


@pytest.mark.parametrize("k", [1, 100, 2000])
def test_in_float32_it_is_within_a_millionth_of_float64_at_full_width(k):
    labels, logits = top_k(5 * torch.randn(4, 21841), k), 4 * torch.randn(4, 21841)
    exact = -(dense_target(labels) * logits.double().log_softmax(1)).sum(1)
    torch.testing.assert_close(
        sparse_cross_entropies(logits, labels).double(), exact, rtol=1e-6, atol=1e-6
    )


def test_bfloat16_logits_get_a_float32_loss_and_a_bfloat16_gradient():
    labels = labels_of()
    logits = torch.randn(4, 9).bfloat16().requires_grad_()
    wide = logits.detach().double().requires_grad_()
    loss = sparse_cross_entropies(logits, replace(labels, probs=labels.probs.float())).mean()
    loss.backward()
    dense_formula(wide, labels).mean().backward()
    assert loss.dtype == torch.float32 and logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.double(), dense_formula(wide, labels).mean(), rtol=1e-6, atol=0)
    # Half a unit in the last place of bfloat16.
    torch.testing.assert_close(logits.grad.double(), wide.grad, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_extreme_logits(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0, 5.0], [-6e4, 6e4, 6e4, 0.0]], dtype=dtype)
    logits.requires_grad_()
    loss = sparse_cross_entropies(logits, top_k(logits.detach().flip(1), 2)).mean()
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_a_retained_graph_gives_the_same_gradient_again():
    labels, logits = labels_of(), torch.randn(4, 9, requires_grad=True)
    loss = sparse_cross_entropies(logits, labels).mean()
    loss.backward(retain_graph=True)
    first = logits.grad.clone()
    loss.backward()
    torch.testing.assert_close(logits.grad, 2 * first)


def test_it_is_least_where_the_student_says_what_the_labels_say():
    labels = labels_of()
    own = dense_target(labels).log().requires_grad_()
    sparse_cross_entropies(own, labels).mean().backward()
    assert own.grad.abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_that_of_the_dense_labels(temperature):
    labels = labels_of()
    powers = dense_target(labels) ** (1 / temperature)
    expected = powers / powers.sum(1, keepdim=True)
    torch.testing.assert_close(dense_target(soften(labels, temperature)), expected)
    zeros = soften(CASES["zeros"](), temperature)
    torch.testing.assert_close(dense_target(zeros), dense_target(CASES["zeros"]()))


@pytest.mark.parametrize(("num_first", "num_second"), [(3, 3), (1, 1), (2, 5), (9, 9), (10, 10)])
def test_total_variation_is_that_of_all_classes(num_first, num_second):
    first, second = (labels_of(6, 10, k) for k in (num_first, num_second))
    expected = 0.5 * (dense_target(first) - dense_target(second)).abs().sum(1)
    torch.testing.assert_close(total_variation(first, second), expected, rtol=0, atol=1e-6)
    same = total_variation(first, first)
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-6)
