"""Hostile weights: files of tensors, finished students, folders of Hugging Face and of timm."""

import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from limbeck.models.build import build_student
from limbeck.models.finished import save_student, weight_hash
from limbeck.models.options import StudentOptions
from tests.campaign.hostile import Hostile

Weights = dict[str, torch.Tensor]
NAME = "blocks.0.attn.qkv.weight"
QKV = ("query", "key", "value")
STUDENT = StudentOptions(
    name="vit_tiny", embed_dim=24, depth=2, num_heads=2, img_size=16, patch_size=8
)
READ = (0,)
REFUSED = (2,)


class Runs:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


class Own:
    """An object of a class that no other program has."""


def inputs(folder: Path) -> Iterator[Hostile]:
    """Everything below ``folder``; MARK in it must never come to be."""
    yield from weights_files(folder)
    yield from other_files(folder)
    yield from students(folder)
    yield from hub_folders(folder)
    yield from timm_folders(folder)
    yield from as_teachers(folder)


def tiny_vit(width: int = 192) -> Weights:
    """The tensors of a ViT of one block whose width tells its heads."""
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=width, depth=1, num_heads=3, num_classes=3
    )
    return model.state_dict()


def inspecting(name: str, file: Path, exits: tuple[int, ...], says: str = "") -> Hostile:
    """The verb that meets strangers' files first."""
    return Hostile(f"inspect: {name}", ["inspect", str(file)], exits, says)


def weights_files(folder: Path) -> Iterator[Hostile]:
    """Tensors that are none, or not those that they say."""
    own = tiny_vit()
    quantised = torch.quantize_per_tensor(own[NAME], 0.1, 0, torch.qint8)
    giant = torch.zeros(1).expand(10**6, 10**6)
    torch_only = {
        "quantised": quantised,
        "sparse": own[NAME].to_sparse(),
        "on no device": own[NAME].to("meta"),
        "stride 0": giant,
        "strides of 10^12 halves": torch.zeros(1).half().expand(10**6, 10**6),
    }
    other_types = {
        "int8": own[NAME].to(torch.int8), "uint8": own[NAME].to(torch.uint8),
        "int64": own[NAME].long(), "bool": own[NAME] > 0, "complex": own[NAME] + 0j,
    }  # fmt: skip
    for name, value in torch_only.items():
        torch.save(own | {NAME: value}, file := folder / f"{name}.pth")
        yield inspecting(name, file, (0, 2))
    for name, value in other_types.items():
        save_file(own | {NAME: value}, file := folder / f"{name}.safetensors")
        yield inspecting(name, file, READ, "can't be loaded")
    fine = {
        "float8": own[NAME].to(torch.float8_e4m3fn), "half": own[NAME].half(),
        "double": own[NAME].double(),
    }  # fmt: skip
    for name, value in fine.items():
        save_file(own | {NAME: value}, file := folder / f"{name}.safetensors")
        yield inspecting(name, file, READ, "3 (usual for")
    values = {
        "NaN": torch.full_like(own[NAME], torch.nan),
        "infinity": torch.full_like(own[NAME], torch.inf),
        "a double beyond float32": torch.full_like(own[NAME], 1e300, dtype=torch.float64),
        "no axes": torch.tensor(1.0),
        "no values": torch.zeros(0, 192),
        "nine axes": torch.zeros(1, 1, 1, 1, 1, 1, 1, 1, 3),
    }
    for name, value in values.items():
        save_file(own | {NAME: value}, file := folder / f"{name}.safetensors")
        yield inspecting(name, file, READ)
    shapes = {
        "patches of 0": {"patch_embed.proj.weight": torch.zeros(192, 3, 0, 0)},
        "a width of 0": {"patch_embed.proj.weight": torch.zeros(0, 3, 8, 8)},
        "positions of no grid": {"pos_embed": torch.zeros(1, 8, 192)},
        "no positions": {"pos_embed": torch.zeros(1, 0, 192)},
        "a million blocks": {"blocks.999999.norm1.weight": torch.ones(192)},
        "a block without end": {f"blocks.{'9' * 400}.norm1.weight": torch.ones(192)},
        "a register of no token": {"reg_token": torch.zeros(1, 0, 192)},
        "a bias of other axes": {"blocks.0.attn.q_bias": torch.zeros(2, 2, 2)},
        "a decoder of other axes": {
            "decoder_embed.weight": torch.zeros(3), "mask_token": torch.zeros(1),
        },
        "a decoder block without end": {
            "decoder_embed.weight": torch.zeros(16, 192),
            "decoder_pos_embed": torch.zeros(1, 5, 16),
            "decoder_pred.weight": torch.zeros(192, 16),
            "decoder_blocks.99999999.norm1.weight": torch.zeros(16),
        },
    }  # fmt: skip
    for name, changed in shapes.items():
        save_file(own | changed, file := folder / f"{name}.safetensors")
        yield inspecting(name, file, READ)
    for told in ("0", "-1", "9" * 5000, "٣", "three"):
        file = folder / f"heads {told[:5]}.safetensors"
        save_file(own, file, {"num_heads": told, "decoder_num_heads": told})
        yield inspecting(f"heads stated as {told[:5]}", file, READ)
    contents = {
        "nested a thousand deep": nested(1000, own),
        "holding itself": holding_itself(),
        "names that are no text": dict.fromkeys((1, (2, 3), None, b"x"), own[NAME]),
        "lists of tensors": [own[NAME]] * 3,
        "an average beside it": {"state_dict": own, "state_dict_ema": own},
        "an average alone": {"model_ema": own},
        "ten thousand names of one tensor": {f"a.{n}": own[NAME] for n in range(10_000)},
        "a name of a megabyte": {"x" * 2**20: own[NAME]},
        "names that move the cursor": {"\x1b[2J\x07a": own[NAME], "b\nc": own[NAME]},
        "a checkpoint that is none": {"limbeck_checkpoint": "x", "module": nested(100, own)},
        "a number for the model": {"model": 3, "a": own[NAME]},
    }  # fmt: skip
    for name, content in contents.items():
        sys.setrecursionlimit(20_000)  # for the writing alone
        torch.save(content, file := folder / f"{name}.pth")
        sys.setrecursionlimit(1000)
        yield inspecting(name, file, (0, 2))


def nested(depth: int, content: Any) -> Any:
    """A dictionary in a dictionary, and so on."""
    for _ in range(depth):
        content = {"model": content}
    return content


def holding_itself() -> dict[str, Any]:
    """A dictionary whose model is the dictionary."""
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def other_files(folder: Path) -> Iterator[Hostile]:
    """What is no file of tensors, or one that would run code or fill the memory."""
    own, mark = tiny_vit(), folder / "MARK"
    model = timm.models.VisionTransformer(img_size=16, patch_size=8, embed_dim=24, depth=1)
    saved: dict[str, tuple[Any, dict[str, Any], str]] = {
        "code": ({"model": own, "x": Runs(mark)}, {}, "run code"),
        "code in protocol 4": ({"model": own, "x": Runs(mark)}, {"pickle_protocol": 4}, "run code"),
        "code in the old format": (
            Runs(mark), {"_use_new_zipfile_serialization": False}, "run code",
        ),
        "a whole model": (model, {}, ".state_dict()"),
        "a whole model in a dictionary": ({"model": model}, {}, "['model'].state_dict()"),
        "an object of a class of its own": ({"model": own, "x": Own()}, {}, "finds the code of"),
    }  # fmt: skip
    for name, (content, how, says) in saved.items():
        torch.save(content, file := folder / f"{name}.pth", **how)
        yield inspecting(name, file, REFUSED, says)
    with open(folder / "plain.pth", "wb") as stream:
        pickle.dump(Runs(mark), stream)
    yield inspecting("a plain pickle with code", folder / "plain.pth", REFUSED, "run code")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "script.pt"))
    yield inspecting("TorchScript", folder / "script.pt", REFUSED, "torch.jit.load")
    yield inspecting("a zip bomb", zip_bomb(folder / "bomb.pth"), REFUSED, "fill the memory")
    headers: dict[str, Any] = {
        "10^12 bytes": {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
        "a negative shape": {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        "an unknown type": {"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}},
        "4-bit floats": {"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}},
        "overlapping tensors": {
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        "a list for a header": [1, 2],
    }
    for name, header in headers.items():
        text = json.dumps(header).encode()
        file = folder / f"header {name}.safetensors"
        file.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
        yield inspecting(f"a header of {name}", file, (0, 2))
    data = {
        "nothing": b"", "text": b"hello\n", "a pointer of Git LFS": b"version https://git-lfs\n",
        "a header of 2^63 bytes": b"\xff" * 64, "HTML": b"<!doctype html><title>404</title>",
    }  # fmt: skip
    for name, content in data.items():
        for suffix in (".pth", ".safetensors"):
            (folder / f"{name}{suffix}").write_bytes(content)
            yield inspecting(f"{name}{suffix}", folder / f"{name}{suffix}", REFUSED)
    for suffix in (".pth", ".safetensors"):
        for name, make in special_files().items():
            make(file := folder / f"{name}{suffix}")
            yield inspecting(f"{name}{suffix}", file, REFUSED)
    yield inspecting("a name with a NUL", folder / "a\0b.pth", REFUSED)
    yield inspecting("a name that is too long", folder / ("x" * 5000 + ".pth"), REFUSED)


def special_files() -> dict[str, Callable[[Path], object]]:
    """What is not a regular file of a bounded size, by what makes it."""
    return {
        "a pipe": os.mkfifo,
        "a device": lambda file: file.symlink_to("/dev/zero"),
        "a link to itself": lambda file: file.symlink_to(file),
        "a folder": Path.mkdir,
        "a hollow giant": hollow,
        "a hollow giant of 2^42 bytes": lambda file: hollow(file, 2**42),
    }


def hollow(file: Path, size: int = 10**12) -> None:
    """A file whose bytes were never written, with a header that claims them."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(stream.tell() + size)


def zip_bomb(file: Path) -> Path:
    """A file of torch whose tensors are compressed ten-thousand-fold."""
    torch.save({"a": torch.zeros(10**8)}, plain := file.with_suffix(".plain"))
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    plain.unlink()
    return file


def students(folder: Path) -> Iterator[Hostile]:
    """Finished students whose record says something else."""
    student = build_student(STUDENT, seed=0)
    number = 0

    def make(changes: dict[str, Any]) -> Path:
        nonlocal number
        number += 1
        save_student(student, place := folder / f"student {number}", {})
        record = json.loads((place / "student.json").read_text())
        for way, value in changes.items():
            *parents, last = way.split(".")
            inner = record
            for name in parents:
                inner = inner[name]
            inner[last] = value
        (place / "student.json").write_text(json.dumps(record))
        return place

    kept = {"weight_hash": "0" * 64, "facts": {}}
    changed: dict[str, Any] = {
        "architecture.name": [
            "hf-hub:someone/something", "local-dir:/etc", "hf_hub:a/b", "../vit", 7, None, [],
            "x" * 10**6,
        ],
        "architecture.kind": ["own", 3, None, {"a": 1}],
        "architecture.kwargs": [[], 3, {"pretrained": True}, {"checkpoint_path": "/etc/passwd"},
                                {"features_only": True}, {"scriptable": True}, {"depth": 10**6},
                                {"depth": -1}, {"embed_dim": 10**6}, {"img_size": 10**5},
                                {"img_size": "16"}, {"num_heads": 0}, {"mlp_ratio": 1e300},
                                {"patch_size": 0}, {"act_layer": "/etc/passwd"}, {"": 1}],
        "architecture.num_heads": [3, "x", [0, 0], [-1, 2], [7, 7], [2] * 1000, [[2], [2]]],
        "architecture.mean": [0, "x", [1, 2], [0, 0, "a"], [None] * 3],
        "architecture.std": [[0, 0, 0], [1, 1, -1], {"a": 1}],
        "architecture": [None, [], "vit"],
        "format_version": ["1", 2, None, 10**400, []],
        "weight_hash": [7, "x", None, "0" * 64],
        "preprocessing": [None, [], {"crop_ratio": "a"}],
        "kept": [[], 3, {"../outside": kept}, {"/etc/passwd": kept}, {"mask_token": kept},
                 {"decoder": {"weight_hash": 3}}, {"a\0b": kept}, {"C:\\x": kept}],
        "notes": ["a note", [1, 2], {}],
        "classes": ["a", 3, [[]]],
        "data": [3, "abc", {"num_holdout": "x"}],
        "student": ["x", {"student": 3}],
    }  # fmt: skip
    for way, values in changed.items():
        for value in values:
            shown = repr(value)[:40]
            yield inspecting(f"student with {way} = {shown}", make({way: value}), (0, 2))
    for text in (
        "",
        "[]",
        "3",
        "null",
        '"x"',
        "[" * 10**5,
        '{"format": "limbeck-student"}',
        "{" * 99,
    ):
        place = make({})
        (place / "student.json").write_text(text)
        yield inspecting(f"student with the record {text[:30]!r}", place, (0, 2))
    place = make({})
    weights = student.model.state_dict()
    weights["norm.weight"] = weights["norm.weight"] * torch.nan
    save_file(weights, place / "student.safetensors")
    record = json.loads((place / "student.json").read_text())
    (place / "student.json").write_text(json.dumps(record | {"weight_hash": weight_hash(weights)}))
    yield inspecting("student with NaN", place, READ, "NaN or infinity")
    for name in ("student.json", "student.safetensors"):
        place = make({})
        (place / "finished.json").write_text("{}")
        (place / "fingerprint.json").write_text("{}")
        (place / name).unlink()
        yield inspecting(f"finished run without {name}", place, REFUSED, "is gone")
    place = make({})
    (place / "student.safetensors").unlink()
    os.mkfifo(place / "student.safetensors")
    yield inspecting("student whose weights are a pipe", place, REFUSED)


def hub_weights() -> Weights:
    """A ViT of one block in Hugging Face's names."""
    width = 24
    norm = {"weight": torch.ones(width), "bias": torch.zeros(width)}
    block = "encoder.layer.0."

    def linear(rows: int, columns: int) -> Weights:
        return {"weight": torch.randn(rows, columns) * 0.02, "bias": torch.zeros(rows)}

    parts = {
        "embeddings.patch_embeddings.projection": {
            "weight": torch.randn(width, 3, 8, 8), "bias": torch.zeros(width),
        },
        "layernorm": norm, block + "layernorm_before": norm, block + "layernorm_after": norm,
        block + "attention.output.dense": linear(width, width),
        block + "intermediate.dense": linear(4 * width, width),
        block + "output.dense": linear(width, 4 * width),
        **{f"{block}attention.attention.{q}": linear(width, width) for q in QKV},
    }  # fmt: skip
    named = {f"{p}.{n}": value.clone() for p, each in parts.items() for n, value in each.items()}
    return named | {
        "embeddings.cls_token": torch.zeros(1, 1, width),
        "embeddings.position_embeddings": torch.randn(1, 5, width),
    }


def hub_folders(folder: Path) -> Iterator[Hostile]:
    """Folders of Hugging Face with configs that say something else."""
    weights = hub_weights()
    own = {"model_type": "vit", "image_size": 16, "patch_size": 8, "num_attention_heads": 2}
    number = 0

    def make(files: dict[str, Any], tensors: Weights | None = None) -> Path:
        nonlocal number
        number += 1
        place = folder / f"hub {number}"
        place.mkdir()
        save_file(weights | (tensors or {}), place / "model.safetensors")
        for name, content in ({"config": own} | files).items():
            text = content if isinstance(content, str) else json.dumps(content)
            (place / f"{name}.json").write_text(text)
        return place

    entries: dict[str, list[Any]] = {
        "model_type": [3, [], None, "x" * 10**5, {"a": 1}, "swin", "\ud800"],
        "image_size": [10**5, -1, 0, "16", [16], [], [16, 16, 16], {"height": 16}, 1e300, True],
        "num_attention_heads": [0, -3, 10**9, "two", [], 7, 2.5],
        "layer_norm_eps": [0, -1, "x", [], 1e-3],
        "hidden_act": [[], 3, "relu", {}],
        "vision_config": [3, [], "x", {"num_attention_heads": "x"}],
        "id2label": [[], {"0": []}, {"x": "y"}, "cat"],
    }
    for key, values in entries.items():
        for value in values:
            place = make({"config": own | {key: value}})
            yield inspecting(f"hub config with {key} = {repr(value)[:40]}", place, (0, 2))
    for text in (
        "",
        "[]",
        "3",
        "[" * 10**5,
        '{"model_type": ',
    ):
        yield inspecting(f"hub config {text[:20]!r}", make({"config": text}), REFUSED)
    processors: list[Any] = [
        {"image_mean": 0.5, "image_std": 0.5}, {"image_mean": [0.5, 0.5], "image_std": [1, 1]},
        {"image_mean": "x"}, {"image_mean": [0.5] * 3, "image_std": [0] * 3},
        {"do_rescale": False}, {"do_rescale": "maybe"}, {"rescale_factor": 0},
        {"rescale_factor": -1}, {"rescale_factor": 1e300}, {"do_normalize": 3}, [], 3, "{", "",
        {"image_mean": [1e400] * 3},
    ]  # fmt: skip
    for said in processors:
        shown = repr(said)[:40]
        place = make({"preprocessor_config": said})
        yield inspecting(f"preprocessor_config {shown}", place, (0, 2))
        place = make({"processor_config": {"image_processor": said}})
        yield inspecting(f"processor_config of {shown}", place, (0, 2))
    indices: dict[str, Any] = {
        "above": {"weight_map": {"a": "../outside.safetensors"}},
        "absolute": {"weight_map": {"a": "/etc/passwd"}},
        "of Windows": {"weight_map": {"a": "..\\outside.safetensors"}},
        "numbers": {"weight_map": {"a": 3}},
        "a list": {"weight_map": ["a"]},
        "missing": {},
        "not there": {"weight_map": {"a": "gone.safetensors"}},
        "of itself": {"weight_map": {"a": "model.safetensors.index.json"}},
    }
    for name, index in indices.items():
        place = make({"model.safetensors.index": index})
        (place / "model.safetensors").unlink()
        yield inspecting(f"shards {name}", place, READ, "can't be loaded")
    tensors: dict[str, Weights] = {
        "a layer without end": {"encoder.layer.99999999.output.dense.bias": torch.zeros(24)},
        "int8": {"encoder.layer.0.output.dense.weight": torch.zeros(24, 96).to(torch.int8)},
        "a flat token": {"embeddings.cls_token": torch.zeros(3, 5)},
        "positions of four axes": {"embeddings.position_embeddings": torch.zeros(1, 1, 5, 24)},
    }
    for name, changed in tensors.items():
        yield inspecting(f"hub weights with {name}", make({}, changed), READ, "can't be loaded")
    place = make({"config": own | {"model_type": "dinov3_vit", "image_size": 10**5}})
    yield inspecting("a DINOv3 that is none", place, (0, 2))
    place = make({})
    (place / "config.json").unlink()
    os.mkfifo(place / "config.json")
    yield inspecting("hub config that is a pipe", place, REFUSED)


def timm_folders(folder: Path) -> Iterator[Hostile]:
    """Folders of timm with configs that would open or build something else."""
    own = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"img_size": 16, "patch_size": 8, "depth": 1},
        "pretrained_cfg": {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    number = 0
    entries: dict[str, list[Any]] = {
        "architecture": ["hf-hub:someone/something", "local-dir:/etc", [], 3, "nothing", "../x"],
        "model_args": [
            [], 3, {"pretrained": True}, {"checkpoint_path": "/etc/passwd"},
            {"features_only": True}, {"pretrained_cfg": {"url": "http://localhost"}},
            {"embed_dim": 65536}, {"depth": 10**6}, {"img_size": 10**5}, {"num_heads": 0},
            {"cache_dir": "/tmp"}, {"weight_init": "jax\0"}, {"patch_size": -8},
        ],
        "pretrained_cfg": [
            [], "x", {"mean": [0.5, 0.5]}, {"std": [0, 0, 0]}, {"input_size": [3, 10**6, 10**6]},
            {"input_size": 16}, {"num_classes": -1}, {"num_classes": "x"}, {"license": 3},
            {"file": "/etc/passwd", "url": "http://localhost", "hf_hub_id": "a/b"},
            {"label_names": {"a": 1}}, {"label_names": [[]]},
        ],
    }  # fmt: skip
    for key, values in entries.items():
        for value in values:
            number += 1
            place = folder / f"timm {number}"
            place.mkdir()
            save_file(tiny_vit(), place / "model.safetensors")
            (place / "config.json").write_text(json.dumps(own | {key: value}))
            yield inspecting(f"timm config with {key} = {repr(value)[:40]}", place, (0, 2))


def as_teachers(folder: Path) -> Iterator[Hostile]:
    """The same where networks are really used: each verb that takes weights."""
    for index in range(24):
        photo = folder / "photos" / "ab"[index % 2] / f"{index}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 9 * index, np.uint8)).save(photo)
    own = tiny_vit()
    own[NAME][0, 0] = torch.nan
    save_file(own, bad := folder / "bad.safetensors")
    save_file(tiny_vit() | {NAME: own[NAME].to(torch.int8)}, ints := folder / "ints.safetensors")
    save_file(tiny_vit(), good := folder / "good.safetensors")
    data = ["--data", str(folder / "photos"), "--data.num-workers", "0"]
    shape = ["--student.name", "vit_tiny", "--student.embed-dim", "24", "--student.depth", "2",
             "--student.num-heads", "2", "--student.img-size", "16", "--student.patch-size", "8",
             "--train.precision", "fp32"]  # fmt: skip
    for name, file in {"NaN": bad, "int8": ints}.items():
        out = ["--out", str(folder / f"out {name}")]
        teacher = ["--teacher", str(file)]
        yield Hostile(
            f"distil from {name}", ["distill", *data, *out, *teacher, *shape], REFUSED, str(file)
        )
        yield Hostile(
            f"a student's start with {name}",
            ["distill", *data, *out, "--teacher", str(good), "--student.weights", str(file)],
            REFUSED, str(file),
        )  # fmt: skip
        yield Hostile(
            f"evaluate {name}", ["evaluate", *data, "--student", str(file)], REFUSED, str(file)
        )
        yield Hostile(
            f"convert {name}", ["convert", str(file), str(folder / "c.pth")], REFUSED, str(file)
        )
