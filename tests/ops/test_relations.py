"""Relations against the golden numbers, a float64 loop from the formula, and finite differences."""

import inspect
import math

import pytest
import torch

from benchmarks.timing import measure_peak_bytes
from limbeck.ops import relations
from limbeck.ops.relations import relation_loss


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


def scaled_products(a, b):
    """a b^T / sqrt(hd), whole."""
    return a @ b.transpose(-2, -1) * a.shape[-1] ** -0.5


def test_golden_real_size():
    def network(dim):
        keys = torch.zeros(1, 1, 197, dim, dtype=torch.float64)
        keys[:, :, 0] = 0.5
        return torch.ones_like(keys), keys

    (t_q, t_k), (s_q, s_k) = network(64), network(48)
    assert scaled_products(t_q, t_k).softmax(-1)[0, 0, 0, 0].item() == pytest.approx(0.21787132118)
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


def test_there_is_no_second_derivative():
    sides = [double(1, 2, 3, 4) for _ in range(4)]
    sides[0].requires_grad_()
    (gradient,) = torch.autograd.grad(relation_loss(*sides), sides[0], create_graph=True)
    assert not gradient.requires_grad


# --- In chunks, with the gradient by hand -------------------------------------------------------


def plain_loss(student_a, student_b, teacher_a, teacher_b, softmax=True, temperature=1.0):
    """Whole maps and autograd."""
    student = scaled_products(student_a, student_b) / temperature
    teacher = scaled_products(teacher_a, teacher_b).detach() / temperature
    if not softmax:
        return (student - teacher).square().mean()
    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1).mean()


def networks(dtype, is_vv=False):
    """Student's a and b, with gradient (one tensor if VV), and the teacher's."""
    student_a = torch.randn(2, 3, 13, 8, dtype=dtype, requires_grad=True)
    student_b = student_a if is_vv else torch.randn(2, 3, 13, 8, dtype=dtype, requires_grad=True)
    teacher_a = torch.randn(2, 3, 13, 5, dtype=dtype)
    return student_a, student_b, teacher_a, teacher_a if is_vv else torch.randn_like(teacher_a)


def loss_and_gradients(loss, sides, **options):
    value = loss(*sides, **options)
    inputs = [sides[0]] if sides[0] is sides[1] else sides[:2]
    return value.detach(), *torch.autograd.grad(3 * value, inputs)


ARMS = [{}, {"temperature": 2.5}, {"softmax": False}]
# One map has 169 scores: rows of one map, whole maps that do not divide the six, all in one.
CHUNKS = [1, 30, 2 * 169 + 5, 4 * 169, 10**6]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("is_vv", [False, True], ids=["qk", "vv"])
@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_chunks_equal_whole_maps_and_autograd(monkeypatch, chunk, is_vv, arm):
    monkeypatch.setitem(relations.CHUNK_ELEMENTS, "cpu", chunk)
    # Rounding alone: 1e3 sums of products in another order.
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        sides = networks(dtype, is_vv)
        ours = loss_and_gradients(relation_loss, sides, **arm)
        plain = loss_and_gradients(plain_loss, sides, **arm)
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


def test_temperature_divides_both_sides_and_squared_error_is_over_all_entries():
    s_a, s_b, t_a, t_b = networks(torch.float64)
    warm = relation_loss(s_a, s_b, t_a, t_b, temperature=4.0)
    torch.testing.assert_close(warm, relation_loss(s_a / 4, s_b, t_a / 4, t_b))
    total = 0.0
    for b, m, query, key in torch.cartesian_prod(*map(torch.arange, (2, 3, 13, 13))).tolist():
        student = sum(s_a[b, m, query] * s_b[b, m, key]) / math.sqrt(8)
        teacher = sum(t_a[b, m, query] * t_b[b, m, key]) / math.sqrt(5)
        total += (student - teacher).item() ** 2
    loss = relation_loss(s_a, s_b, t_a, t_b, softmax=False)
    assert loss.item() == pytest.approx(total / (2 * 3 * 13 * 13), rel=1e-12)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"softmax": False, "temperature": 2.0}])
def test_a_temperature_without_meaning_is_refused(options):
    with pytest.raises(ValueError, match="temperature"):
        relation_loss(*networks(torch.float32), **options)


@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_gradients_of_every_arm_by_finite_differences(monkeypatch, arm):
    monkeypatch.setitem(relations.CHUNK_ELEMENTS, "cpu", 7)
    s_a, t_a, t_b = double(1, 2, 3, 2).requires_grad_(), double(1, 2, 3, 4), double(1, 2, 3, 4)
    s_b = double(1, 2, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: relation_loss(a, b, t_a, t_b, **arm), (s_a, s_b))
    assert torch.autograd.gradcheck(lambda v: relation_loss(v, v, t_a, t_b, **arm), (s_a,))


def test_one_side_may_be_without_gradient():
    s_a, s_b, t_a, t_b = networks(torch.float64)
    (grad,) = torch.autograd.grad(relation_loss(s_a.detach(), s_b, t_a, t_b), s_b)
    (plain,) = torch.autograd.grad(plain_loss(s_a, s_b, t_a, t_b), s_b)
    torch.testing.assert_close(grad, plain)


def test_no_gradient_is_computed_where_none_is_needed():
    with torch.no_grad():
        assert not relation_loss(*networks(torch.float32)).requires_grad
    sides = [side.detach() for side in networks(torch.float32)]
    assert measure_peak_bytes(lambda: relations._relation_loss(*sides, True, 1.0, True)) > (
        measure_peak_bytes(lambda: relations._relation_loss(*sides, True, 1.0, False))
    )


def test_slices_of_one_projection_as_an_encoder_gives_them():
    qkv = torch.randn(2, 13, 3, 3, 8, dtype=torch.float64, requires_grad=True)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # not contiguous
    teacher = double(2, 3, 13, 5)
    (grad,) = torch.autograd.grad(relation_loss(q, k, teacher, teacher), qkv, retain_graph=True)
    (plain,) = torch.autograd.grad(plain_loss(q, k, teacher, teacher), qkv)
    torch.testing.assert_close(grad, plain)


def test_a_single_sample_and_none():
    for batch_size in (1, 0):
        sides = [side[:batch_size] for side in networks(torch.float64)]
        loss = relation_loss(*sides)
        assert loss.isnan() == plain_loss(*sides).isnan() == (batch_size == 0)
        loss.backward()  # of nothing, NaN like any mean: but no error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    sides = [side.to(dtype).detach().requires_grad_() for side in networks(torch.float32)]
    plain = loss_and_gradients(relation_loss, sides)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss_and_gradients(relation_loss, sides)
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


def test_a_gradient_scaler_lifts_what_float16_would_lose():
    # Gradients of 2e-9: below float16's smallest number, 6e-8.
    sides = [side.half().detach().requires_grad_() for side in networks(torch.float32)]
    exact = [side.detach().double().requires_grad_() for side in sides]
    (relation_loss(*sides) * 1e-6 * 2**16).backward()
    (relation_loss(*exact) * 1e-6 * 2**16).backward()
    scale = exact[0].grad.abs().max().item()
    torch.testing.assert_close(
        sides[0].grad.double(), exact[0].grad, rtol=2e-3, atol=1e-4 * scale
    )  # float16 has 11 bits


def test_whole_in_a_compiled_graph_for_every_batch_size():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    bare = inspect.unwrap(relation_loss)  # without the tests' own check of shapes
    compiled = torch.compile(
        lambda a, b, t_a, t_b: bare(2 * a, b, t_a, t_b), backend=backend, fullgraph=True
    )
    for batch_size in range(2, 7):
        sides = [torch.randn(batch_size, 2, 5, 4) for _ in range(4)]
        sides[0].requires_grad_()
        ours = torch.autograd.grad(compiled(*sides), sides[0])
        eager = torch.autograd.grad(relation_loss(2 * sides[0], *sides[1:]), sides[0])
        torch.testing.assert_close(ours, eager)
    assert len(graphs) == 2  # one of fixed size, then one for all: not one for each size


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the check itself
def test_the_operator_keeps_torch_s_rules():
    s_a, s_b, t_a, t_b = networks(torch.float32)
    torch.library.opcheck(relations._relation_loss, (s_a, s_b, t_a, t_b, True, 1.0, True))
    torch.library.opcheck(relations._relation_loss, (t_a, t_b, t_a, t_b, False, 1.0, False))


def test_memory_is_a_quarter_of_whole_maps_at_1025_tokens():
    student = [torch.randn(1, 12, 1025, 32, requires_grad=True) for _ in range(2)]
    teacher = [torch.randn(1, 12, 1025, 64) for _ in range(2)]
    peak = measure_peak_bytes(lambda: relation_loss(*student, *teacher).backward())
    # Whole maps hold at least two of each network at once: 4 * 12 * 1025^2 float32 numbers.
    assert peak <= 4 * 12 * 1025**2 * 4 / 4
