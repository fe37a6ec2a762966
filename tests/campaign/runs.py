"""Run folders of every verb that are damaged, foreign or in the way, and configs out of range."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.campaign.hostile import Hostile

SHAPE = [
    *("--student.name", "vit_tiny", "--student.embed-dim", "24", "--student.depth", "2"),
    *("--student.num-heads", "2", "--student.img-size", "16", "--student.patch-size", "8"),
]
LOOP = ["--train.precision", "fp32", "--train.device", "cpu", "--data.num-workers", "0"]
SHORT = [
    *("--train.epochs", "1", "--train.global-batch-size", "8", "--train.save-every", "1"),
    *("--optim.warmup-epochs", "0", "--data.holdout-ratio", "0.25"),
]
STORED = ("config.json", "fingerprint.json", "finished.json", "metrics.jsonl", "student.json")
NO_JSON = {
    "empty": b"",
    "no-utf8": b"\xff\xfe\x00",
    "list": b"[1, 2]",
    "nan": b'{"step": NaN, "seconds": NaN}',
    "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
}
OUT_OF_RANGE = {
    "seed": "-1", "train.epochs": "1e300", "train.global-batch-size": "1000000000000",
    "train.accumulate-steps": "0", "train.save-every": "9" * 400, "train.log-every": "0",
    "train.ema-decay": "1", "optim.base-lr": "nan", "optim.weight-decay": "1e300",
    "optim.warmup-epochs": "-1", "data.num-workers": "1000000", "data.label-seed": "-5",
    "data.holdout-ratio": "1", "data.max-bad-ratio": "2", "data.max-image-pixels": "10" * 12,
    "student.img-size": "100000", "student.depth": "1000000", "student.embed-dim": "10000000000",
    "masked-pixel.mask-ratio": "1", "masked-pixel.decoder-depth": "1000000",
    "probes.batch-size": "99999999999", "crop.scale": "0 inf",
}  # fmt: skip


def inputs(folder: Path) -> Iterator[Hostile]:
    """Make the files below the folder, and say what is done with them."""
    images = _draw(folder / "images")
    start = [*SHAPE, *LOOP, *SHORT, "--data", str(images)]
    distil = ["distill", "--method", "masked-pixel", *start]
    tune = ["finetune", *LOOP, *SHORT, "--data", str(images)]
    _run([*distil, "--out", str(folder / "whole")])
    _run([*tune, "--student", str(folder / "whole"), "--out", str(folder / "tuned")])
    compare = [
        *("compare", "--arms", "untrained", "masked-pixel", "--seeds", "1", "--no-fine-tune"),
        *start,
    ]
    _run([*compare, "--out", str(folder / "compared")])
    shown = ["--data", str(images), "--data.num-workers", "0", "--device", "cpu"]
    analyze = ["analyze", str(folder / "whole"), *shown]
    _run([*analyze, "--out", str(folder / "analyzed")])
    evaluate = [
        *("evaluate", "--student", str(folder / "tuned"), "--baseline", str(folder / "tuned")),
        *(*shown, "--num-labels", "1", "--label-draws", "1", "--no-measure-speed"),
        *("--corruptions", "fog", "--corruptions.severities", "1"),
    ]
    _run([*evaluate, "--out", str(folder / "evaluated")])

    def copy(whole: str, name: str, change: Callable[[Path], object]) -> Path:
        out = folder / name
        shutil.copytree(folder / whole, out)
        change(out)
        return out

    def again(name: str, change: Callable[[Path], object], **expected: object) -> Hostile:
        """The same command on a changed copy of its folder."""
        return Hostile(name, [*distil, "--out", str(copy("whole", name, change))], **expected)

    for file in STORED:
        for kind, content in NO_JSON.items():
            if kind in ("empty", "deep") or file == "config.json":
                yield again(f"{file}-{kind}", _replace(file, content), exits=(0, 2))
        yield again(f"{file}-is-a-folder", _make_folder(file), exits=(0, 1, 2))
        yield again(f"{file}-is-a-pipe", _make_pipe(file), exits=(0, 1, 2))
    for share in (0.1, 0.5, 0.9):
        yield again(f"checkpoint-flipped-{share}", _flip("checkpoint.pt", share), exits=(0, 1))
        yield again(f"student-flipped-{share}", _flip("student.safetensors", share), exits=(0,))
    unfinished = _unfinished
    yield again("checkpoint-cut", lambda out: (unfinished(out), _cut(out)), exits=(1,), says="copy")
    yield again(
        "checkpoint-not-finite",
        lambda out: (unfinished(out), _poison(out, float("nan"))),
        exits=(1,),
        says="NaN",
    )
    yield again(
        "checkpoint-of-another-run",
        lambda out: (unfinished(out), shutil.copy(folder / "tuned/checkpoint.pt", out)),
        exits=(1,),
        says="another run's",
    )
    yield again(
        "checkpoint-is-a-link-to-zero",
        lambda out: (unfinished(out), _link(out / "checkpoint.pt", "/dev/zero")),
        exits=(1,),
        says="device",
    )
    yield again(
        "checkpoint-of-a-newer-version",
        lambda out: (unfinished(out), _change(out, lambda s: s.update(limbeck_checkpoint=9))),
        exits=(1,),
        says="version",
    )  # fmt: skip
    yield again("student-gone", _remove("student.safetensors"), exits=(0,))
    yield again("student-and-checkpoint-gone", _strip, exits=(2,), says="--overwrite")
    yield again("config-gone", _remove("config.json"), exits=(2,), says="no run")
    yield again(
        "newer-config", _json("config.json", {"some_new_option": 3}), exits=(2,), says="another run"
    )
    yield again(
        "finished-names-outside", _json("finished.json", {"files": {"../../x": "00"}}), exits=(0,)
    )
    yield again("temporaries-of-a-killed-writer", _leave_temporaries, exits=(0,))
    yield again("board-is-a-file", _no_board, exits=(0, 1))
    yield again(
        "board-is-a-file-of-a-run-under-way",
        lambda out: (unfinished(out), _remove("checkpoint.pt")(out), _no_board(out)),
        exits=(1,),
        says="tensorboard",
    )
    _link(folder / "loop", "loop")
    for name, out, says in (
        ("other-verbs-folder", folder / "tuned", "verb is"),
        ("a-comparisons-folder", folder / "compared", "verb is"),
        ("out-is-the-images", images, "holds no run"),
        ("out-is-a-file", images / "c0/0.png", "Can't write"),
        ("out-is-a-device", "/dev/null/run", "Can't write"),
        ("out-is-in-proc", "/proc/run", "Can't write"),
        ("out-has-a-long-name", folder / ("x" * 300), "name too long"),
        ("out-is-a-link-to-itself", folder / "loop", "Can't write"),
    ):
        yield Hostile(name, [*distil, "--out", str(out)], (2,), says)
    yield Hostile("cleared-half", [*distil, "--out", str(_half_cleared(folder / "half"))], (0,))
    for file, content in {
        "masked-pixel_0/cost.json": b'{"seconds": "a week"}',
        "masked-pixel_0/probes.json": b'{"asked": 3}',
        "untrained_0/student.json": b"{}",
        "masked-pixel_0/metrics.jsonl": b'{"images_per_second": "fast"}\n[]\n',
        "comparison.json": b"[",
    }.items():
        name = f"compared-{file.replace('/', '-')}"
        out = copy("compared", name, _replace(file, content))
        yield Hostile(name, [*compare, "--out", str(out)], (0, 1, 2))
    for number, content in enumerate(
        (b"{}", b"[", b'{"answers": 3}', b'{"answers": {"corrupted_top1": {"clean": "zz"}}}')
    ):
        out = copy("evaluated", f"evaluated-{number}", _replace_each("corrupted_*.json", content))
        words = [*evaluate, "--overwrite", "--out", str(out)]
        yield Hostile(f"answers-under-corruptions-{number}", words, (2,), "corrupted_")
    for name, change in {
        "empty": _replace("analysis.json", b"{}"),
        "cut": _replace("analysis.json", b'{"request": {'),
        "parts": _json("analysis.json", {"parts": {"probing": {"whole": {"knn_top1": [3]}}}}),
        "notes": _json("analysis.json", {"notes": 3}),
        "heads": _json("analysis.json", {"parts": {"attention": {"whole": {"distance": "far"}}}}),
    }.items():
        out = copy("analyzed", f"analyzed-{name}", change)
        yield Hostile(f"analysis-{name}", [*analyze, "--out", str(out)], (2,), "analysis.json")
    for option, value in OUT_OF_RANGE.items():
        words = [*distil, "--out", str(folder / "none"), f"--{option}", *value.split()]
        yield Hostile(f"{option}-{value[:12]}", words, (2,))
    preset = folder / "nul.toml"
    preset.write_text('verb = "distill"\nout = "a\\u0000b"\n')
    yield Hostile("nul-in-a-path", [*distil, "--preset", str(preset)], (2,), "NUL")


def _draw(images: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(24):
        file = images / f"c{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file)
    return images


def _run(words: list[str]) -> None:
    # In a process of its own, which lets go of the folder's lock.
    subprocess.run([sys.executable, "-m", "limbeck", *words], check=True, capture_output=True)


def _replace(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda out: (out / file).write_bytes(content)


def _replace_each(pattern: str, content: bytes) -> Callable[[Path], object]:
    return lambda out: [file.write_bytes(content) for file in out.rglob(pattern)]


def _json(file: str, values: dict[str, object]) -> Callable[[Path], object]:
    def change(out: Path) -> None:
        known = json.loads((out / file).read_text())
        (out / file).write_text(json.dumps(known | values))

    return change


def _make_folder(file: str) -> Callable[[Path], object]:
    return lambda out: ((out / file).unlink(), (out / file).mkdir())


def _make_pipe(file: str) -> Callable[[Path], object]:
    return lambda out: ((out / file).unlink(), os.mkfifo(out / file))


def _no_board(out: Path) -> None:
    shutil.rmtree(out / "tensorboard")
    (out / "tensorboard").write_text("no folder")


def _remove(file: str) -> Callable[[Path], object]:
    return lambda out: (out / file).unlink()


def _flip(file: str, share: float) -> Callable[[Path], object]:
    def change(out: Path) -> None:
        content = bytearray((out / file).read_bytes())
        content[int(share * len(content))] ^= 16
        (out / file).write_bytes(content)
        if file == "checkpoint.pt":
            _unfinished(out)

    return change


def _unfinished(out: Path) -> None:
    (out / "finished.json").unlink()


def _cut(out: Path) -> None:
    os.truncate(out / "checkpoint.pt", (out / "checkpoint.pt").stat().st_size // 2)


def _change(out: Path, change: Callable[[dict], object]) -> None:
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    change(state)
    torch.save(state, out / "checkpoint.pt")


def _poison(out: Path, value: float) -> None:
    _change(out, lambda state: next(iter(state["module"].values())).fill_(value))


def _link(link: Path, target: str) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _strip(out: Path) -> None:
    for name in ("student.safetensors", "checkpoint.pt"):
        (out / name).unlink()


def _leave_temporaries(out: Path) -> None:
    for name in (".checkpoint.pt.partial", ".config.json.4711.tmp"):
        (out / name).write_bytes(b"half")
    _unfinished(out)


def _half_cleared(out: Path) -> Path:
    (out / "1_vit_tiny").mkdir(parents=True)
    (out / ".lock").touch()
    return out
