"""What follows from what was measured; that something is; no clock decides a test."""

import pytest
import torch

from limbeck.engine import machine
from limbeck.engine.machine import (
    Choice,
    Gpu,
    agreed,
    choose,
    choose_for_cpu,
    choose_for_gpu,
    cpu_kind,
    describe,
    fastest,
    judge_build,
    kind_of,
    product_seconds,
    saturates,
    slowness,
)

CPU = torch.device("cpu")
GIB = 2**30


@pytest.mark.parametrize(
    ("fp32", "bf16", "precision", "why"),
    [
        (0.74, 0.36, "bf16", "its products are 2.1 times faster than fp32's on this CPU (KIND)"),
        (1.25, 1.0, "bf16", "its products are 1.2 times faster"),
        (1.24, 1.0, "fp32", "bf16 products are hardly faster on this CPU (KIND)"),
        (1.0, 1.0, "fp32", "hardly faster"),
        (0.9, 2.1, "fp32", "bf16 products are 2.3 times slower on this CPU (KIND)"),
        (1.0, 73.2, "fp32", "bf16 products are 73 times slower on this CPU (KIND)"),
    ],
)
def test_on_a_cpu_the_faster_product_decides_with_a_margin(fp32, bf16, precision, why):
    chosen = choose_for_cpu(fp32, bf16, "KIND")
    assert chosen.precision == precision
    assert why in chosen.why


@pytest.mark.parametrize(
    ("capability", "has_bf16", "precision"),
    [
        ((9, 0), True, "bf16"), ((8, 0), True, "bf16"), ((7, 5), False, "fp16"),
        ((7, 0), False, "fp16"), ((6, 1), False, "fp32"),
    ],
)  # fmt: skip
def test_on_a_gpu_its_own_instructions_decide(capability, has_bf16, precision):
    chosen = choose_for_gpu(Gpu("GPU", capability, has_bf16, 16 * GIB))
    assert chosen.precision == precision
    assert chosen.why.startswith("GPU has")


def test_ranks_agree():
    bf16, fp16, fp32 = (Choice(each, each) for each in ("bf16", "fp16", "fp32"))
    assert agreed([bf16]) == bf16
    assert agreed([bf16, bf16]) == bf16
    assert agreed([bf16, fp32, bf16]) == fp32
    assert agreed([bf16, fp16]).precision == "fp32"


def test_the_choice_is_of_what_was_measured(monkeypatch):
    monkeypatch.setattr(machine, "product_seconds", lambda dtype: (2.0, 1.0))
    assert choose(CPU).precision == "bf16"
    assert slowness(CPU, "bf16") is None
    monkeypatch.setattr(machine, "product_seconds", lambda dtype: (1.0, 12.0))
    assert choose(CPU).precision == "fp32"
    assert slowness(CPU, "bf16").startswith("bf16 products are 12 times slower than fp32's")
    assert slowness(CPU, "fp16").startswith("fp16 products are 12 times slower")
    assert slowness(CPU, "fp32") is None
    assert choose(torch.device("meta")).precision == "fp32"


def test_both_products_are_measured_on_one_thread_and_the_threads_come_back():
    torch.set_num_threads(2)
    fp32, bf16 = product_seconds(torch.bfloat16)
    assert fp32 > 0 and bf16 > 0
    assert torch.get_num_threads() == 2


def test_turns_are_taken_and_a_disturbed_one_does_not_count():
    """The first work takes 1, then 9 (disturbed), then 2 seconds; the second always 5."""
    took = iter([1.0, 5.0, 9.0, 5.0, 2.0, 5.0])
    now, order = [0.0], []

    def work(name):
        def run():
            order.append(name)
            now[0] += next(took)

        return run

    assert fastest([work("a"), work("b")], clock=lambda: now[0]) == [1.0, 5.0]
    assert order == ["a", "b"] * 3


def test_more_turns_until_the_budget_is_spent():
    now = [0.0]

    def work():
        now[0] += 1.0

    fastest([work], budget=10.0, clock=lambda: now[0])
    assert now[0] == 10.0


@pytest.mark.parametrize(
    ("capability", "flags", "kind"),
    [
        ("AVX512", {"avx512f", "avx512_bf16", "avx2"}, "AVX-512 with bf16"),
        ("AVX512", {"avx512_bf16", "amx_bf16"}, "AVX-512 with bf16 (AMX)"),
        ("AVX512", {"avx512f"}, "AVX-512, no bf16 instructions"),
        ("AVX2", {"avx2", "avx512_bf16"}, "AVX2, no bf16 instructions"),  # PyTorch was told so
        ("AVX2", set(), "AVX2"),
        ("DEFAULT", {"sse4_2"}, "no vector instructions that PyTorch uses, no bf16 instructions"),
        ("DEFAULT", {"asimd", "FEAT_BF16"}, "Arm with bf16"),
        ("DEFAULT", {"asimd"}, "Arm, no bf16 instructions"),
        ("SVE256", {"asimd", "sve", "bf16"}, "Arm, SVE256 with bf16"),
    ],
)
def test_kinds_of_cpu(capability, flags, kind):
    assert kind_of(capability, flags) == kind


def test_the_cpu_of_this_machine_and_a_line_about_it():
    assert cpu_kind()
    line = describe(CPU)
    assert cpu_kind() in line and "for this process" in line


@pytest.mark.parametrize(
    ("cuda", "has_gpu", "capability", "architectures", "said"),
    [
        (None, False, None, [], None),
        ("13.0", True, (8, 6), ["sm_75", "sm_80", "sm_90"], None),
        ("13.0", True, (12, 1), ["sm_90", "compute_90"], None),
        ("13.0", True, (9, 0), ["sm_90a"], None),
        (None, True, None, [], "is a CPU build, which can't use it"),
        ("13.0", False, None, [], "CUDA build, and this machine has no NVIDIA GPU; the CPU build"),
        ("13.0", True, None, ["sm_90"], "finds no usable GPU though the machine has one"),
        ("13.0", True, (7, 0), ["sm_75", "sm_80"], "no kernels for this GPU (sm_70; it has sm_75"),
        ("13.0", True, (10, 0), ["sm_90", "nonsense"], "no kernels for this GPU (sm_100"),
        ("13.0", True, (8, 0), ["sm_86"], "no kernels for this GPU"),
    ],
)
def test_a_build_that_does_not_fit_is_told(cuda, has_gpu, capability, architectures, said):
    found = judge_build(cuda, has_gpu, capability, architectures)
    assert found is None if said is None else said in found


@pytest.mark.parametrize(
    ("architecture", "flags", "may"),
    [
        ("x86_64", {"avx2", "fma"}, True),
        ("x86_64", {"avx512f", "avx512bw"}, True),
        ("x86_64", {"avx512f", "avx512_vnni"}, False),
        ("AMD64", {"avx2", "avx_vnni"}, False),
        ("AMD64", set(), True),  # Windows does not tell
        ("aarch64", {"asimd"}, False),
        ("arm64", set(), False),
    ],
)
def test_where_products_of_int8_may_overflow(architecture, flags, may):
    assert saturates(architecture, flags) == may
