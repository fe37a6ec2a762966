"""A classifier trained on CIFAR-10 and exported in every precision: what each file answers.

    python -m experiments.cifar10_export.run --data CIFAR --out runs/cifar10/export

``CIFAR`` holds ``cifar10_train.parquet`` and ``cifar10_test.parquet``. Takes up what is there.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import limbeck
from experiments.cifar10 import STUDENT
from limbeck.config import from_plain
from limbeck.documents import read_toml
from limbeck.errors import RunError
from limbeck.evaluation.report import table
from limbeck.exports.formats import FORMATS, FormatName, Precision
from limbeck.models.build import build_student
from limbeck.models.finished import save_student
from limbeck.recipes.ship.options import MeasureOptions

FILES: tuple[tuple[FormatName, Precision], ...] = (
    ("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8"),
    ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"),
)  # fmt: skip
NUM_IMAGES = 10_000


def main() -> None:
    """Train, export, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    run = train(asked.data, asked.out, asked.seed)
    print(table([row(run, asked.out, *each) for each in FILES]))


def train(data: Path, out: Path, seed: int) -> Path:
    """The classifier's run."""
    start, run = out / f"untrained_{seed}", out / f"classifier_{seed}"
    if not start.exists():
        save_student(build_student(replace(STUDENT, depth=6), seed=seed), start, {})
    images = {
        "root": str(data / "cifar10_train.parquet"),
        "eval_root": str(data / "cifar10_test.parquet"),
    }
    asked: dict[str, Any] = read_toml(Path(__file__).with_name("finetune.toml"))
    asked |= {"out": str(run), "student": str(start), "seed": seed, "data": images}
    asked.pop("verb")
    return limbeck.finetune(from_plain(limbeck.FinetuneConfig, asked, "finetune.toml"))


def row(run: Path, out: Path, to: FormatName, precision: Precision) -> dict[str, str]:
    """What a file answers on all test images."""
    cells = {"runtime": FORMATS[to].title, "precision": precision}
    file = out / f"{run.name}-{precision}{FORMATS[to].suffix}"
    try:
        proof = limbeck.export(limbeck.ExportConfig(
            network=str(run), to=to, precision=precision, out=file, num_images=NUM_IMAGES,
            overwrite=True, measure=MeasureOptions(num_runs=1),
        )).record["proof"]  # fmt: skip
    except RunError as error:
        return cells | {"same class, %": str(error)}
    logits, score = proof["outputs"]["logits"], proof["score"]
    return cells | {
        "same class, %": f"{100 * logits['agreement']:.2f}",
        "top-1, %": f"{100 * score['file']:.2f}",
        "in PyTorch, %": f"{100 * score['pytorch']:.2f}",
        "largest difference of an image": f"{logits['relative']:.1e}",
        "MiB": f"{proof['bytes'] / 2**20:.1f}",
    }


if __name__ == "__main__":
    main()
