"""Run folders and stores that say of their precision what none can be, and options likewise."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.campaign.hostile import Hostile

TINY = (
    *("--student.name", "vit_tiny", "--student.embed-dim", "24", "--student.depth", "2"),
    *("--student.num-heads", "2", "--student.img-size", "16", "--student.patch-size", "8"),
    *("--data.num-workers", "0", "--method", "masked-pixel"),
)
QUICK = ("--train.epochs", "1", "--train.global-batch-size", "8", "--train.device", "cpu")

CONFIGS = {
    "empty": "",
    "no object": "[]",
    "cut": '{"train": {"precision": "bf',
    "nothing in it": "{}",
    "auto": '{"train": {"precision": "auto"}}',
    "unknown": '{"train": {"precision": "int4"}}',
    "upper case": '{"train": {"precision": "BF16"}}',
    "a number": '{"train": {"precision": 16}}',
    "null": '{"train": {"precision": null}}',
    "a list": '{"train": {"precision": ["bf16"]}}',
    "an object": '{"train": {"precision": {"a": "bf16"}}}',
    "no section": '{"train": "bf16"}',
    "of a study": '{"precision": 7}',
    "of a study, unknown": '{"precision": "fast"}',
    "a dotted name": '{"train.precision": "bf16"}',
    "deep": '{"train": ' * 5000 + "1" + "}" * 5000,
    "NaN": '{"train": {"precision": NaN}}',
    "no UTF-8": b'{"train": {"precision": "\xff\xfe"}}',
}
"""What may lie in a run's config.json."""

MANIFESTS = {
    "empty": "",
    "no object": "7",
    "no teacher": '{"format_version": 1, "store_id": "x"}',
    "teacher is a name": '{"format_version": 1, "store_id": "x", "teacher": "fp32"}',
    "deep": "[" * 5000 + "]" * 5000,
}
"""What may lie in a store's manifest.json."""

WORDS = {
    "fp8": (("--train.precision", "fp8"), "bf16"),
    "BF16": (("--train.precision", "BF16"), "bf16"),
    "nothing": (("--train.precision", ""), ""),
    "a teacher's without a teacher": (("--teacher.precision", "fp32"), "have no effect without"),
    "auto of a teacher": (("--teacher.precision", "auto"), ""),
    "fp16 on a CPU": (("--train.precision", "fp16"), ""),
}


def _write(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def inputs(folder: Path) -> Iterator[Hostile]:
    """Each a run of a second on sixteen images."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(16):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.png")
    shared = ("--data", str(photos), *TINY)
    for number, (name, content) in enumerate(CONFIGS.items()):
        run = folder / f"run{number}"
        _write(run / "config.json", content)
        _write(run / "fingerprint.json", "{}")
        words = ("distill", *shared, *QUICK, "--out", str(run))
        yield Hostile(f"a config that is {name}", words)
        yield Hostile(f"a config that is {name}, for doctor", ("doctor", *words[1:]))
    for number, (name, content) in enumerate(MANIFESTS.items()):
        store = folder / f"store{number}"
        _write(store / "manifest.json", content)
        words = ("store-targets", "--data", str(photos), "--out", str(store), "--device", "cpu")
        teacher = ("--teacher", str(photos / "0.png"))  # the store is looked at first
        yield Hostile(f"a manifest that is {name}", (*words, *teacher), exits=(1, 2))
    for number, (name, (words, says)) in enumerate(WORDS.items()):
        own = ("distill", *shared, *QUICK, *words, "--out", str(folder / f"words{number}"))
        yield Hostile(f"precision: {name}", own, says=says)
