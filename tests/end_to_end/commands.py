"""Words of the command line for small runs, and the command as a process."""

import subprocess
from pathlib import Path

from limbeck.cli import main
from tests.processes import start_ranks

STUDENT = ["--student", "vit_tiny"] + [
    f"--student.{name}={value}"
    for name, value in {
        "img-size": 32, "patch-size": 8, "embed-dim": 24, "depth": 2, "num-heads": 3,
    }.items()
]  # fmt: skip


def data_words(images: Path) -> list[str]:
    """The images, a quarter of them held out, read by the process itself."""
    return ["--data", str(images), "--data.holdout-ratio", "0.25", "--data.num-workers", "0"]


def train_words(images: Path, out: Path) -> list[str]:
    """Eight steps on the CPU."""
    return [
        *data_words(images),
        *("--out", str(out)),
        *("--train.epochs", "4"),
        *("--train.global-batch-size", "16"),
        *("--train.precision", "fp32"),
        *("--train.device", "cpu"),
        *("--train.log-every", "1", "--train.probe-every", "100"),
        *("--optim.base-lr", "1e-2"),
    ]


def distill_words(images: Path, out: Path, teacher: Path) -> list[str]:
    """``limbeck distill`` without drop path."""
    words = ["distill", *train_words(images, out), *STUDENT, "--teacher", str(teacher)]
    return [*words, "--teacher.precision", "fp32", "--relation.drop-path-rate", "0"]


def process(
    words: list[str], *, cwd: Path, num_processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, or in several as torchrun starts them.

    Of several: what all wrote, and the first exit status that is not 0.
    """
    ranks = start_ranks(main, words, folder=cwd, count=num_processes)
    done = [rank.end() for rank in ranks]
    return subprocess.CompletedProcess(
        words,
        next((each.returncode for each in done if each.returncode), 0),
        "".join(each.stdout for each in done),
        "".join(each.stderr for each in done),
    )
