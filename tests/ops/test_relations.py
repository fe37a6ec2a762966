"""Relations against the golden numbers, a float64 loop from the formula, and finite differences."""

import math

import pytest
import torch

from limbeck.ops.relations import relation_loss, relation_scores


def reference_loss(student_a, student_b, teacher_a, teacher_b):
    """KL(teacher || student), written from the formula with plain loops in float64."""
    B, heads, N, _ = student_a.shape
    total = 0.0
    for b in range(B):
        for m in range(heads):
            for query in range(N):
                rows = []
                for side_a, side_b in ((student_a, student_b), (teacher_a, teacher_b)):
                    dim = side_a.shape[-1]
                    scores = [
                        sum(
                            float(side_a[b, m, query, c]) * float(side_b[b, m, key, c])
                            for c in range(dim)
                        )
                        / math.sqrt(dim)
                        for key in range(N)
                    ]
                    weights = [math.exp(score) for score in scores]
                    rows.append([weight / sum(weights) for weight in weights])
                total += sum(t * math.log(t / s) for s, t in zip(*rows, strict=True))
    return total / (B * heads * N)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def eye(scale=2.0, heads=1):
    return scale * torch.eye(4, dtype=torch.float64).expand(1, heads, 4, 4)


def test_equals_a_loop_written_from_the_formula():
    s_a, s_b = double(2, 3, 5, 4), double(2, 3, 5, 4)
    t_a, t_b = double(2, 3, 5, 7), double(2, 3, 5, 7)
    expected = reference_loss(s_a, s_b, t_a, t_b)
    assert relation_loss(s_a, s_b, t_a, t_b).item() == pytest.approx(expected, rel=1e-12)


def test_golden_direction_of_the_divergence():
    uniform = torch.zeros_like(eye())
    assert relation_loss(uniform, uniform, eye(), eye()).item() == pytest.approx(0.46801059566)
    assert relation_loss(eye(), eye(), uniform, uniform).item() == pytest.approx(0.45445859279)
    assert relation_loss(eye(), eye(), eye(), eye()).item() == pytest.approx(0.0, abs=1e-12)


def test_golden_each_network_scales_with_its_own_head_dim():
    def one_hot(dim):
        x = torch.zeros(1, 1, 4, dim, dtype=torch.float64)
        x[0, 0, range(4), range(4)] = 4.0
        return x

    wide, narrow = one_hot(64), one_hot(16)
    assert relation_loss(narrow, narrow, wide, wide).item() == pytest.approx(0.29026830734)
    assert relation_loss(wide, wide, narrow, narrow).item() == pytest.approx(0.18309249187)


def test_golden_head_split_and_mean_over_heads():
    x = 2 * torch.eye(4, dtype=torch.float64)
    teacher = x.reshape(1, 4, 2, 2).transpose(1, 2)  # heads are contiguous slices of the channels
    uniform = torch.zeros_like(teacher)
    assert relation_loss(uniform, uniform, teacher, teacher).item() == pytest.approx(0.39853152366)


def test_golden_real_size():
    def network(dim):
        keys = torch.zeros(1, 1, 197, dim, dtype=torch.float64)
        keys[:, :, 0] = 0.5
        return torch.ones_like(keys), keys

    (t_q, t_k), (s_q, s_k) = network(64), network(48)
    assert relation_scores(t_q, t_k).softmax(-1)[0, 0, 0, 0].item() == pytest.approx(0.21787132118)
    assert relation_loss(s_q, s_k, t_q, t_k).item() == pytest.approx(0.02202264515)
    uniform = torch.zeros_like(s_q)
    assert relation_loss(uniform, uniform, t_q, t_k).item() == pytest.approx(0.63083835318)
    one_key = torch.zeros_like(t_k)
    one_key[:, :, 0] = 100.0
    bound = relation_loss(uniform, uniform, t_q, one_key).item()
    assert bound == pytest.approx(5.28320372874)  # ln 197


def test_gradient_by_finite_differences():
    s_a, s_b = double(1, 2, 3, 2).requires_grad_(), double(1, 2, 3, 2).requires_grad_()
    t_a, t_b = double(1, 2, 3, 4), double(1, 2, 3, 4)
    assert torch.autograd.gradcheck(lambda a, b: relation_loss(a, b, t_a, t_b), (s_a, s_b))


def test_no_gradient_reaches_the_teacher():
    sides = [torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(4)]
    relation_loss(*sides).backward()
    assert sides[0].grad is not None and sides[1].grad is not None
    assert sides[2].grad is None and sides[3].grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_extreme_scores_in_every_precision(dtype):
    # Raw products here are 1e6: beyond float16, and exp of their difference underflows.
    student, teacher = (
        (1e3 * torch.randn(2, 2, 6, 4)).to(dtype),
        (1e3 * torch.randn(2, 2, 6, 4)).to(dtype),
    )
    student.requires_grad_()
    loss = relation_loss(student, student, teacher, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite() and student.grad.isfinite().all()


def test_scores_stay_float32_under_autocast():
    q = torch.randn(1, 1, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = relation_scores(q, q)
    torch.testing.assert_close(scores, relation_scores(q, q), rtol=0, atol=0)
