"""Generated images and small runs for the tests of recipes."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from limbeck.data.options import DataOptions
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.methods.options import MaskedPixelOptions, RelationOptions
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.run.options import DistillConfig, FinetuneConfig, ProbeOptions

COLORS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (200, 50, 40)}
TEACHER_SHAPE = StudentOptions(
    name="vit_tiny", img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4
)
STUDENT_SHAPE = StudentOptions(
    name="vit_tiny", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3
)


def draw_image(color: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    """A colour and much noise, 40 x 36 pixels."""
    noise = rng.normal(0, 40, (36, 40, 3))
    return Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8))


def draw_classes(folder: Path, num_per_class: int = 16) -> Path:
    """Class folders, one per colour: an easy labelled set."""
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for index in range(num_per_class):
            draw_image(color, rng).save(folder / name / f"{index:03d}.png")
    return folder


def draw_unlabelled(folder: Path, count: int = 48) -> Path:
    """The same colours in one folder."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    colors = list(COLORS.values())
    for index in range(count):
        draw_image(colors[index % 3], rng).save(folder / f"{index:03d}.png")
    return folder


def teacher_config(images: Path, out: Path) -> DistillConfig:
    """A masked autoencoder that is trained in a second."""
    return DistillConfig(
        out=out,
        method="masked-pixel",
        student=TEACHER_SHAPE,
        masked_pixel=MaskedPixelOptions(mask_ratio=0.5),
        **_shared(images, epochs=2),
    )


def distill_config(images: Path, out: Path, teacher: Path, /, **changes: object) -> DistillConfig:
    """Relation distillation to a student of another depth, width and head count: eight steps."""
    values = {
        "out": out,
        "student": STUDENT_SHAPE,
        "teacher": TeacherOptions(source=str(teacher), precision="fp32"),
        "relation": RelationOptions(drop_path_rate=0.0),
        **_shared(images, epochs=4),
    }
    return DistillConfig(**values | changes)


def finetune_config(
    images: Path, out: Path, student: Path | str, /, **changes: object
) -> FinetuneConfig:
    """Fine-tuning of the student above, without mixing."""
    values = {
        "out": out,
        "student": str(student),
        **_shared(images, epochs=4),
    }
    del values["probes"]
    return FinetuneConfig(**values | changes)


def _shared(images: Path, epochs: float) -> dict[str, object]:
    return {
        "data": DataOptions(root=str(images), holdout_ratio=0.25, num_workers=0),
        "optim": OptimOptions(base_lr=1e-2),
        "train": TrainOptions(
            epochs=epochs,
            global_batch_size=16,
            log_every=1,
            probe_every=100,
            precision="fp32",
            device="cpu",
        ),
        "probes": ProbeOptions(crop_ratio=1.0),
    }


def metrics_of(run: Path) -> tuple[list[dict], list[dict]]:
    """The records of steps and those of probes in a run's ``metrics.jsonl``."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if "losses" in r], [r for r in records if "probe" in r]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def weights_of(run: Path) -> bytes:
    """The finished student's weights, byte by byte."""
    return (run / "student.safetensors").read_bytes()


def assert_same_student(run: Path, expected: Path) -> None:
    """The weights agree to 1e-5, which leaves room for another order of summation.

    The keys' biases are left out: a softmax does not feel them, so their gradient is rounding
    alone, which Adam scales up to full steps.
    """
    other = load_file(run / "student.safetensors")
    for name, value in load_file(expected / "student.safetensors").items():
        kept = torch.ones(len(value), dtype=torch.bool)
        if name.endswith("qkv.bias"):
            kept[len(value) // 3 : 2 * len(value) // 3] = False
        torch.testing.assert_close(other[name][kept], value[kept], atol=1e-5, rtol=0, msg=name)


def cells_of(text):
    """The rows of a table as dictionaries, also of one that goes on below."""
    rows = {}
    for part in text.split("\n\n"):
        head, _, *lines = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()
        )
        for place, line in enumerate(lines):
            rows.setdefault(place, {}).update(zip(head, line, strict=True))
    return list(rows.values())
