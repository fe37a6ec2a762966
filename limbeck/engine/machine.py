"""What this machine is good at: measured at the start, so that nothing is tuned to one machine.

A CPU without bf16 instructions multiplies bf16 matrices 2 to 100 times slower than fp32 ones, one
with them twice as fast; which of the two this is no name tells safely, so both are timed.
"""

import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional as F

from limbeck.limits import memory_bytes, num_cores

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

MARGIN = 1.25  # what bf16 must gain: less is within the noise, and fp32 is the more exact
ROWS, WIDTH, HIDDEN = 256, 192, 768  # of the product: the first of an MLP of ViT-Tiny
BUDGET = 0.15  # seconds of all repeats, of which there are three at least
TENSOR_CORES = (7, 0)  # compute capability of Volta, the first with fp16 matrix units

Clock = Callable[[], float]


@dataclass(frozen=True)
class Choice:
    """The precision that ``auto`` stands for, and why, in words for people."""

    precision: Precision
    why: str


@dataclass(frozen=True)
class Gpu:
    """What PyTorch says of a GPU. ``has_bf16``: in its own instructions, not emulated."""

    name: str
    capability: tuple[int, int]
    has_bf16: bool
    memory: int


def choose(device: torch.device) -> Choice:
    """The precision that is fastest on a device without harm; on a CPU it is measured once."""
    if device.type == "cuda":
        return choose_for_gpu(gpu_of(device))
    if device.type == "cpu":
        return choose_for_cpu(*product_seconds(torch.bfloat16), cpu_kind())
    return Choice("fp32", f"nothing else is tried on {device.type}")


def choose_for_cpu(fp32: float, bf16: float, kind: str) -> Choice:
    """From the seconds of the same product in both."""
    if fp32 >= MARGIN * bf16:
        why = f"its products are {fp32 / bf16:.1f} times faster than fp32's on this CPU ({kind})"
        return Choice("bf16", why)
    if bf16 >= MARGIN * fp32:
        return Choice(
            "fp32", f"bf16 products are {_times(bf16 / fp32)} slower on this CPU ({kind})"
        )
    return Choice("fp32", f"bf16 products are hardly faster on this CPU ({kind})")


def choose_for_gpu(gpu: Gpu) -> Choice:
    """bf16 where the GPU has it, else fp16 (with a loss scaler) on its matrix units, else fp32."""
    if gpu.has_bf16:
        return Choice("bf16", f"{gpu.name} has it")
    if gpu.capability >= TENSOR_CORES:
        return Choice("fp16", f"{gpu.name} has no bf16, and matrix units for fp16")
    return Choice("fp32", f"{gpu.name} has neither bf16 nor matrix units")


def agreed(choices: list[Choice]) -> Choice:
    """One for all ranks: where their machines differ, what is right on each of them."""
    if len({each.precision for each in choices}) == 1:
        return choices[0]
    careful = next((each for each in choices if each.precision == "fp32"), None)
    return careful or Choice("fp32", "the ranks' devices have no faster one in common")


def slowness(device: torch.device, precision: str) -> str | None:
    """Why a precision is a bad choice on a device, in words; None where it is not."""
    if precision == "fp32":
        return None
    if device.type == "cuda":
        gpu = gpu_of(device)
        is_slow = precision == "bf16" and not gpu.has_bf16
        return f"{gpu.name} has no bf16 and emulates it" if is_slow else None
    if device.type != "cpu":
        return None
    fp32, lower = product_seconds(DTYPES[precision])
    if lower < MARGIN * fp32:
        return None
    times = _times(lower / fp32)
    return f"{precision} products are {times} slower than fp32's on this CPU ({cpu_kind()})"


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


@cache
def product_seconds(dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of one matrix product of a small ViT on the CPU: in fp32, and in another type.

    On one thread: several wait for each other, on a busy machine longer than the product takes.
    """
    x, weight = torch.ones(ROWS, WIDTH), torch.ones(HIDDEN, WIDTH)
    lower_x, lower_weight = x.to(dtype), weight.to(dtype)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            fp32, lower = fastest(
                [lambda: F.linear(x, weight), lambda: F.linear(lower_x, lower_weight)], BUDGET
            )
    finally:
        torch.set_num_threads(num_threads)
    return fp32, lower


def fastest(
    works: list[Callable[[], object]], budget: float = 0.0, clock: Clock = time.perf_counter
) -> list[float]:
    """The shortest seconds of each work, in turns: at least three, more until ``budget`` is spent.

    Of a busy machine every turn may be disturbed, but hardly all of them, and never to be shorter.
    """
    start, turns = clock(), 0
    seconds = [float("inf")] * len(works)
    while turns < 3 or clock() - start < budget:
        for place, work in enumerate(works):
            begun = clock()
            work()
            seconds[place] = min(seconds[place], clock() - begun)
        turns += 1
    return seconds


def cpu_kind() -> str:
    """What of a CPU decides, in words, such as "AVX2, no bf16 instructions"."""
    return kind_of(torch.backends.cpu.get_cpu_capability(), _cpu_flags())


def kind_of(capability: str, flags: set[str]) -> str:
    """Likewise of PyTorch's word for the vector instructions that it uses, and the system's flags.

    Flags beyond what PyTorch uses count for nothing; without any nothing is said of bf16.
    """
    if capability.startswith("AVX512"):
        name, in_bf16 = "AVX-512", {"avx512_bf16", "amx_bf16"} & flags
    elif capability == "AVX2":
        name, in_bf16 = "AVX2", set()
    else:
        is_arm = capability.startswith(("NEON", "SVE")) or {"asimd", "neon"} & flags
        name = f"Arm, {capability}" if is_arm and capability != "DEFAULT" else ""
        name = name or ("Arm" if is_arm else "no vector instructions that PyTorch uses")
        in_bf16 = {"bf16", "svebf16", "FEAT_BF16"} & flags
    if not flags:
        return name
    amx = " (AMX)" if "amx_bf16" in in_bf16 else ""
    return f"{name} with bf16{amx}" if in_bf16 else f"{name}, no bf16 instructions"


def int8_saturates() -> bool:
    """Whether products of int8 may overflow here: on an x86 processor without VNNI (or AMX) two of
    them are added in 16 bits, so that weights may use seven bits alone."""
    return saturates(platform.machine(), _cpu_flags())


def saturates(architecture: str, flags: set[str]) -> bool:
    """Likewise of the processor's name and the system's flags; where these tell nothing, it may."""
    if architecture.lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    return not flags & {"avx512_vnni", "avx512vnni", "avx_vnni", "avxvnni", "amx_int8"}


def _cpu_says(*names: str) -> str:
    """What Linux says of a CPU under one of these names; '' elsewhere."""
    with suppress(OSError, UnicodeDecodeError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, words = line.partition(":")
            if name.strip() in names:
                return words.strip()
    return ""


@cache
def _cpu_flags() -> set[str]:
    if words := _cpu_says("flags", "Features"):
        return set(words.split())
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        with suppress(OSError, subprocess.SubprocessError):
            asked = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
            said = subprocess.run(asked, capture_output=True, text=True, timeout=5)
            return {"asimd"} | ({"FEAT_BF16"} if said.stdout.strip() == "1" else set())
    return set()


def cpu_name() -> str:
    """The processor's name for people."""
    told = _cpu_says("model name") or platform.processor() or platform.machine()
    return told or "an unknown processor"


def gpu_of(device: torch.device) -> Gpu:
    """What PyTorch says of a CUDA device."""
    facts = torch.cuda.get_device_properties(device)
    with torch.cuda.device(device):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Gpu(facts.name, (facts.major, facts.minor), has_bf16, facts.total_memory)


def describe(device: torch.device) -> str:
    """This machine in one line: processor and its kind, cores, memory, and the GPU of a device."""
    memory = memory_bytes()
    parts = [f"{cpu_name()}, {cpu_kind()}", f"{num_cores()} cores for this process"]
    if memory is not None:
        parts.append(f"{memory / 2**30:.1f} GiB of memory")
    if device.type == "cuda":
        gpu = gpu_of(device)
        parts.append(f"{gpu.name} with {gpu.memory / 2**30:.0f} GiB")
    elif torch.cuda.is_available():
        parts.append("its GPU is not used")
    elif torch.backends.mps.is_available():
        parts.append("Apple's GPU is not used")
    else:
        parts.append("no GPU that PyTorch can use")
    return "; ".join(parts)


def build_unfit() -> str | None:
    """Why the installed PyTorch does not fit this machine, and what would; None where it does."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    architectures = torch.cuda.get_arch_list()
    return judge_build(torch.version.cuda, has_nvidia_gpu(), capability, architectures)


def judge_build(
    cuda: str | None, has_gpu: bool, capability: tuple[int, int] | None, architectures: list[str]
) -> str | None:
    """Likewise from the build's CUDA version and architectures (sm_80, compute_90), whether there
    is an NVIDIA GPU, and the capability of the one that PyTorch finds, if it finds any.
    """
    if cuda is None:
        if not has_gpu or torch.version.hip:
            return None
        return (
            "This machine has an NVIDIA GPU, and the installed PyTorch is a CPU build, which can't "
            "use it; install a CUDA build of torch and torchvision (see README)."
        )
    if capability is None:
        if has_gpu:
            return (
                f"PyTorch's build for CUDA {cuda} finds no usable GPU though the machine has one: "
                "its driver is too old for this build, or CUDA_VISIBLE_DEVICES hides it."
            )
        return (
            "The installed PyTorch is a CUDA build, and this machine has no NVIDIA GPU; the CPU "
            "build computes the same and takes a tenth of the disk (see README)."
        )
    if not any(_runs_on(each, capability) for each in architectures):
        own = "sm_" + "".join(map(str, capability))
        return (
            f"The installed PyTorch has no kernels for this GPU ({own}; it has "
            f"{', '.join(architectures) or 'none'}); install a build that has them, or pass "
            "--train.device cpu."
        )
    return None


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """sm_86 runs on 8.6 and later ones of 8; compute_80, which is compiled there, on all later."""
    kind, _, digits = architecture.partition("_")
    digits = digits.rstrip("af")  # sm_90a
    if len(digits) < 2 or not digits.isdecimal():
        return False
    major, minor = int(digits[:-1]), int(digits[-1])
    if kind == "compute":
        return (major, minor) <= capability
    return major == capability[0] and minor <= capability[1]


def has_nvidia_gpu() -> bool:
    """Whether the system has an NVIDIA driver, whatever PyTorch can do with it."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
