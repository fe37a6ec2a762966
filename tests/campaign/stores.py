"""Hostile stores of targets, and hostile soft labels in the released layout."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save

from limbeck.cli import main
from limbeck.data.target_store.manifest import read_manifest
from limbeck.models.finished import save_student
from limbeck.models.vit import build_encoder
from tests.campaign.hostile import Hostile
from tests.data.released import write_released

STUDENT = (
    *("--student", "vit_tiny", "--student.img-size", "16", "--student.patch-size", "8"),
    *("--student.embed-dim", "24", "--student.depth", "2", "--student.num-heads", "2"),
)
NUM_CLASSES = 5

Change = Callable[[dict[str, Any]], object]


def inputs(folder: Path) -> Iterator[Hostile]:
    """See ``tests.campaign.hostile``."""
    images = _images(folder / "images")
    teacher = _teacher(folder / "teacher")
    data = ("--data", str(images), "--data.num-workers", "0")
    of_run = (*data, "--method", "sparse-logit", *STUDENT)
    train = (
        *("distill", *of_run, "--train.epochs", "1", "--train.precision", "fp32"),
        *("--train.device", "cpu", "--data.holdout-ratio", "0"),
        *("--train.global-batch-size", "4"),
    )
    store = (
        *("store-targets", *of_run, "--teacher", str(teacher), "--teacher.precision", "fp32"),
        *("--device", "cpu", "--store.num-views", "1"),
    )
    main([*store, "--out", str(folder / "probs")])
    of_tokens = ("--method", "relation", "--relation.drop-path-rate", "0")
    main([*store, *of_tokens, "--out", str(folder / "tokens")])
    number = 0

    def copy(kind: str = "probs") -> Path:
        nonlocal number
        number += 1
        return Path(shutil.copytree(folder / kind, folder / f"store{number}"))

    def asked(
        name: str,
        address: Path,
        says: str = "",
        exits: tuple[int, ...] = (1, 2),
        more: tuple[str, ...] = (),
    ) -> Iterator[Hostile]:
        yield Hostile(f"inspect a store: {name}", ("inspect", str(address)))
        out = str(folder / "runs" / address.name)
        words = (*train, *more, "--targets", str(address), "--out", out)
        yield Hostile(f"train from a store: {name}", words, exits, says)

    yield from _of_manifests(copy, asked)
    yield from _of_tokens(copy, asked, of_tokens)
    yield from _of_parts(copy, asked)
    yield from _of_places(folder, copy, store, train)
    yield from _of_released(folder, images)


def _of_manifests(copy, asked) -> Iterator[Hostile]:
    """Manifests that say what can't be; their checksums are right."""
    at = _set
    changes: dict[str, tuple[Change, str]] = {
        "precision auto": (at("teacher.precision", "auto"), "teacher.precision"),
        "precision a list": (at("teacher.precision", ["bf16"]), "teacher.precision"),
        "facts a number": (at("teacher.facts", 3), "teacher.facts"),
        "facts empty": (at("teacher.facts", {}), "embed_dim"),
        "depth of 10^9": (at("teacher.facts.depth", 10**9), "teacher.facts.depth"),
        "patches of 0 pixels": (at("teacher.facts.patch_size", 0), "teacher.facts.patch_size"),
        "a mean of two": (at("teacher.facts.mean", [0.5, 0.5]), "teacher.facts.mean"),
        "classes negative": (at("teacher.facts.num_classes", -1), "num_classes"),
        "classes of others": (at("teacher.facts.num_classes", 7), "of 5 classes"),
        "origin text": (at("teacher.facts.origin", "../../etc"), "origin"),
        "architecture of the hub": (
            at("teacher.facts.architecture", {"kind": "timm", "name": "hf-hub:some/one"}), "",
        ),
        "top_k of 2^31": (at("params.top_k", 2**31), "can't be"),
        "top_k text": (at("params.top_k", "5"), "top_k"),
        "no params": (at("params", {}), "top_k"),
        "unknown kind": (at("kind", "../probs"), "update limbeck"),
        "kind of tokens": (at("kind", "tokens"), "point"),
        "no arrays": (at("arrays", {}), "arrays"),
        "array of objects": (at("arrays.records", [[8], "object"]), "arrays.records"),
        "array with a negative side": (at("arrays.records", [[-8], "uint8"]), "arrays.records"),
        "array of 2^60 bytes": (at("arrays.records", [[2**31, 2**29], "uint8"]), "damaged"),
        "array of another name": (
            lambda values: values["arrays"].update({"../x": values["arrays"].pop("records")}),
            "records have no",
        ),
        "views by the million": (at("num_views", 2**40), "num_views"),
        "views a truth": (at("num_views", True), "num_views"),
        "no views": (at("num_views", 0), "num_views"),
        "parts by the billion": (at("num_parts", 2**30), "num_parts"),
        "three parts": (at("num_parts", 3), "damaged"),
        "seed of 10^40": (at("recipe.seed", 10**40), "recipe.seed"),
        "no seed in the records": (at("recipe.seed", None), ""),
        "views of 10^6 pixels": (at("recipe.img_size", 10**6), "recipe.img_size"),
        "recipe a list": (at("recipe", []), "recipe"),
        "data a number": (at("data", 1), "data"),
        "versions of numbers": (at("versions.torch", 2.15), "versions.torch"),
        "weights that are not there": (at("weights", "0" * 64), ""),
    }  # fmt: skip
    for name, (change, says) in changes.items():
        address = copy()
        _rewrite(address, change)
        yield from asked(name, address, says, exits=(0, 1, 2) if not says else (1, 2))
    texts = {
        "no JSON": b"\x89PNG\r\n",
        "empty": b"",
        "a list": b"[]",
        "a million brackets": b"[" * 10**6,
        "NaN": b'{"format_version": NaN}',
        "a number of 10^5 digits": b'{"format_version": ' + b"9" * 10**5 + b"}",
        "format 2": b'{"format_version": 2}',
        "format of text": json.dumps({"format_version": "x" * 10**6}).encode(),
        "not UTF-8": b'{"format_version": "\xff\xfe"}',
    }
    for name, text in texts.items():
        address = copy()
        (address / "manifest.json").write_bytes(text)
        yield from asked(f"manifest {name}", address, "format" if "format" in name else "manifest")


def _of_tokens(copy, asked, words) -> Iterator[Hostile]:
    """Stores of tokens, which bring a part of their teacher."""
    changes: dict[str, tuple[str, Any]] = {
        "block of 10^9": ("params.block", 10**9),
        "block before the first": ("params.block", -5),
        "point of logits": ("params.point", "logits"),
        "type of text": ("params.dtype", "float128"),
        "tokens by the billion": ("params.num_tokens", 2**40),
        "shown a list": ("params.shown", []),
        "no weights": ("weights", None),
        "decoder of none": ("params.point", "decoder_tokens"),
        "architecture of none": ("teacher.facts.architecture", {}),
        "architecture of 10^6 blocks": ("teacher.facts.architecture.kwargs.depth", 10**6),
        "architecture of the hub": ("teacher.facts.architecture.name", "hf-hub:some/one"),
        "architecture of a folder": ("teacher.facts.architecture.name", "local-dir:../../x"),
        "width of others": ("teacher.facts.embed_dim", 48),
    }
    for name, (path, value) in changes.items():
        address = copy("tokens")
        _rewrite(address, _set(path, value))
        exits = (0, 1, 2) if name == "width of others" else (1, 2)
        yield from asked(f"tokens, {name}", address, exits=exits, more=words)
    address = copy("tokens")
    _rewrite(address, lambda values: values["teacher"].pop("precision"))
    yield from asked("tokens without a precision", address, exits=(0,), more=words)
    first, *others = load_file(address / "weights.safetensors").items()
    for name, tensors in {
        "of no name": {},
        "one less": dict(others),
        "one of another shape": {first[0]: torch.zeros(3), **dict(others)},
        "one of NaN": {first[0]: torch.full_like(first[1], torch.nan), **dict(others)},
        "one of integers": {first[0]: first[1].to(torch.int8), **dict(others)},
        "one of a path": {"../../x": first[1], **dict(others)},
    }.items():
        address = copy("tokens")
        content = save(tensors)
        (address / "weights.safetensors").write_bytes(content)
        _rewrite(address, _set("weights", sha256(content).hexdigest()))
        exits = (0, 1, 2) if name in ("one of NaN", "one of integers") else (1, 2)
        yield from asked(f"tokens, weights {name}", address, exits=exits, more=words)
    for name, content in {"empty": b"", "text": b"weights", "long": b"\xff" * 100}.items():
        address = copy("tokens")
        (address / "weights.safetensors").write_bytes(content)
        _rewrite(address, _set("weights", sha256(content).hexdigest()))
        yield from asked(f"tokens, weights {name}", address, "weights", more=words)


def _of_parts(copy, asked) -> Iterator[Hostile]:
    """Records of parts, the files with the records, and what lies beside them."""
    part, data = "part-00000.json", "part-00000.safetensors"
    entries = {
        "size negative": ("size", -1),
        "size of 2^62": ("size", 2**62),
        "images by the billion": ("num_images", 2**31),
        "images as text": ("num_images", "many"),
        "checksum a number": ("sha256", 12),
        "checksum of others": ("sha256", "0" * 64),
        "skipped a list": ("skipped", ["a"]),
        "fingerprints text": ("fingerprints", "all"),
        "fingerprint of view 10^6": (
            "fingerprints", [{"key": "red/0.png", "view": 10**6, "pixels": ""}],
        ),
        "fingerprint of nothing": ("fingerprints", [{}]),
        "store of others": ("store_id", "f" * 32),
    }  # fmt: skip
    for name, (entry, value) in entries.items():
        address = copy()
        record = json.loads((address / part).read_bytes())
        (address / part).write_text(json.dumps({**record, entry: value}))
        yield from asked(f"part's {name}", address, "part-00000")

    def header(change: Change) -> Callable[[bytes], bytes]:
        def changed(content: bytes) -> bytes:
            length = struct.unpack("<Q", content[:8])[0]
            values = json.loads(content[8 : 8 + length])
            change(values)
            text = json.dumps(values).encode()
            return struct.pack("<Q", len(text)) + text + content[8 + length :]

        return changed

    contents: dict[str, Callable[[bytes], bytes]] = {
        "zeros": lambda content: bytes(len(content)),
        "cut": lambda content: content[:20],
        "a header of 2^63 bytes": lambda content: struct.pack("<Q", 2**63) + content[8:],
        "offsets beyond its end": header(
            lambda values: values["records"].update(data_offsets=[2**50, 2**50 + 8])
        ),
        "offsets before its begin": header(
            lambda values: values["hashes"].update(data_offsets=[-800, -704])
        ),
        "another type": header(lambda values: values["records"].update(dtype="I8")),
        "an array more": header(lambda values: values.update(more=values["records"])),
        "a header of lists": lambda content: struct.pack("<Q", 2) + b"[]" + content[8:],
    }
    for name, change in contents.items():
        address = copy()
        content = change((address / data).read_bytes())
        (address / data).write_bytes(content)
        record = json.loads((address / part).read_bytes())
        record |= {"size": len(content), "sha256": sha256(content).hexdigest()}
        (address / part).write_text(json.dumps(record))
        yield from asked(f"part of {name}", address, "part-00000")

    for name, put in {
        "pipe": os.mkfifo,
        "folder": os.mkdir,
        "link to itself": lambda file: os.symlink(os.path.basename(file), file),
        "link to a device": lambda file: os.symlink("/dev/zero", file),
        "sparse giant": lambda file: (Path(file).touch(), os.truncate(file, 2**40)),
    }.items():
        for file in ("manifest.json", part, data):
            address = copy()
            (address / file).unlink()
            put(address / file)
            yield from asked(f"{file} is a {name}", address)
    for name in (
        "part-\u0660\u0660\u0660\u0660\u0660.json",
        "part-00000.2.json",
        "part-99999.json",
    ):
        address = copy()
        shutil.copy(address / part, address / name)
        yield from asked(f"{ascii(name)} beside it", address, exits=(0, 1, 2))


def _of_places(folder: Path, copy, store, train) -> Iterator[Hostile]:
    """Addresses that are none, folders that others hold, targets of other data."""
    (folder / "a file").touch()
    os.mkfifo(folder / "a pipe")
    for name in ("nosuch://x", "file://", "memory://nothing", "git://x", "a::b://c", "http:///"):
        yield Hostile(f"inspect the address {name}", ("inspect", name), (1, 2))
    for name in ("a file", "a pipe", "gone", "a file/below"):
        words = (*train, "--out", str(folder / "runs" / "x"), "--targets", str(folder / name))
        yield Hostile(f"train from {name}", words, (1, 2))
        if name != "gone":
            yield Hostile(f"store into {name}", (*store, "--out", str(folder / name)), (1, 2))
    others = _images(folder / "others", seed=1)
    words = (*train, "--out", str(folder / "runs" / "others"), "--targets", str(copy()))
    yield Hostile("targets of other images of these names", (*words, "--data", str(others)), (2,),
                  "other pixels")  # fmt: skip
    named = _images(folder / "named", name="other{}.png")
    yield Hostile("targets of images of other names", (*words, "--data", str(named)), (2,),
                  "no stored targets")  # fmt: skip
    yield Hostile("go on with a store of other data", (*store, "--out", str(copy()), "--data",
                  str(named)), (2,), "--resume")  # fmt: skip
    linked = folder / "linked"
    linked.mkdir()
    (folder / "precious").write_text("precious")
    (linked / ".manifest.json.partial").symlink_to(folder / "precious")
    yield Hostile("a temporary name that is a link", (*store, "--out", str(linked)), (1, 2))
    yield Hostile("a store at the root", (*store, "--out", "/"), (1, 2))
    yield Hostile("check a store by other images", (*store, "--out", str(copy()), "--check",
                  "--data", str(others)), (1,), "other pixels")  # fmt: skip


def _of_released(folder: Path, images: Path) -> Iterator[Hostile]:
    keys = sorted(str(file.relative_to(images)) for file in images.glob("*/*.png"))
    changes: dict[str, Callable[[Path], object]] = {
        "epoch of 10^8": lambda root: (root / "logits_top3_epoch99999999").mkdir(),
        "epoch twice": lambda root: (root / "logits_top3_epoch00").mkdir(),
        "top of 10^8": lambda root: (root / "logits_top99999999_epoch0").mkdir(),
        "rank of 10^8": lambda root: _first(root, "rank99999999-keys.txt").touch(),
        "keys a pipe": lambda root: _replace(root, "keys.txt", os.mkfifo),
        "values a pipe": lambda root: _replace(root, "values.bin", os.mkfifo),
        "keys a folder": lambda root: _replace(root, "keys.txt", os.mkdir),
        "values a folder": lambda root: _replace(root, "values.bin", os.mkdir),
        "keys a device": lambda root: _replace(root, "keys.txt", _zero),
        "keys a sparse giant": lambda root: os.truncate(_first(root, "rank0-keys.txt"), 2**40),
        "values a sparse giant": lambda root: os.truncate(_first(root, "rank0-values.bin"), 2**40),
        "both sparse giants": lambda root: [
            os.truncate(_first(root, f"rank0-{name}"), 2**30) for name in ("keys.txt", "values.bin")
        ],
        "keys not UTF-8": lambda root: _first(root, "rank0-keys.txt").write_bytes(
            b"\xff\xfe\n" * len(keys)
        ),
        "keys of folders above": lambda root: _first(root, "rank0-keys.txt").write_text(
            "".join(f"../../{key}\n" for key in keys)
        ),
        "values of noise": lambda root: _first(root, "rank0-values.bin").write_bytes(
            np.random.default_rng(0).bytes(_first(root, "rank0-values.bin").stat().st_size)
        ),
        "nothing": lambda root: shutil.rmtree(root),
    }
    for number, (name, change) in enumerate(changes.items()):
        root = folder / f"released{number}"
        write_released(root, keys, num_epochs=2, num_classes=NUM_CLASSES, num_kept=3)
        change(root)
        words = ("convert-targets", str(root), str(folder / f"converted{number}"))
        yield Hostile(f"released set: {name}", (*words, "--data", str(images), "--classes",
                      str(NUM_CLASSES)))  # fmt: skip


def _images(folder: Path, *, seed: int = 0, name: str = "{}.png") -> Path:
    rng = np.random.default_rng(seed)
    for kind in ("red", "green"):
        (folder / kind).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / name.format(number))
    return folder


def _teacher(folder: Path) -> Path:
    """A classifier of two blocks, whose weights are of a seed."""
    architecture = {
        "kind": "timm", "name": "vit_tiny_patch16_224", "mean": [0.5] * 3, "std": [0.5] * 3,
        "kwargs": {
            "img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2,
            "num_classes": NUM_CLASSES,
        },
    }  # fmt: skip
    torch.manual_seed(0)
    save_student(build_encoder(architecture), folder, {})
    return folder


def _set(path: str, value: Any) -> Change:
    """Puts a value into nested plain data."""
    *names, last = path.split(".")

    def change(values: dict[str, Any]) -> None:
        for name in names:
            values = values[name]
        values[last] = value

    return change


def _rewrite(address: Path, change: Change) -> None:
    """Change a manifest and give it the checksum of what it says then."""
    file = address / "manifest.json"
    read_manifest(file.read_bytes(), str(address))
    values = json.loads(file.read_bytes())
    before = values.pop("store_id")
    change(values)
    plain = json.dumps(values, sort_keys=True)
    after = sha256(plain.encode()).hexdigest()[:32]
    file.write_text(json.dumps({**values, "store_id": after}))
    for part in address.glob("part-*.json"):
        part.write_text(part.read_text().replace(before, after))


def _first(root: Path, name: str) -> Path:
    return root / "logits_top3_epoch0" / name


def _replace(root: Path, name: str, put: Callable[[Path], object]) -> None:
    file = _first(root, f"rank0-{name}")
    file.unlink()
    put(file)


def _zero(file: Path) -> None:
    file.symlink_to("/dev/zero")
