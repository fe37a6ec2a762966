"""The formats that a network leaves in: what each needs, what it can hold, and why not.

Plain data without torch, for the command line. A format's module has ``write`` and ``load``.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, get_args

from limbeck.errors import UserError, require_extra

FormatName = Literal["onnx", "openvino", "torch", "timm"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
InputKind = Literal["float", "uint8", "normalised"]
Run = Callable[[Any], dict[str, Any]]
"""A loaded file: images as an array to outputs by name, arrays likewise."""

INPUTS: dict[InputKind, str] = {
    "float": "float32 (N, 3, H, W), red, green, blue, 0..1; normalised inside",
    "uint8": "uint8 (N, H, W, 3), red, green, blue, 0..255; scaled and normalised inside",
    "normalised": "float32 (N, 3, H, W), red, green, blue, 0..1, less the mean and divided by std",
}
"""What a file may take, in words for its JSON."""
BY_SCORE = ("boxes", "classes")
"""Outputs of a detector that are in the order of its scores, which rounding changes."""


@dataclass(frozen=True)
class Format:
    """``refused``: what it can't hold, by the option's value, and why, as the user reads it.

    ``computes``: what a precision means in it. ``shows_blocks``: whether it can give what is
    between, to find a fault.
    """

    title: str
    suffix: str
    packages: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    inputs: tuple[InputKind, ...] = ("float", "uint8", "normalised")
    computes: dict[Precision, str] = field(default_factory=dict)
    shows_blocks: bool = True


WORDS = {
    "any": "a network for images of any size",
    "segmenter": "a segmenter",
    "detector": "a detector",
}

_WIDENED = "weights are fp16 in the file, and computed in fp32"
_INT8 = "weights and what layers take are int8, what is between in fp32"
_HALF = "blocks are computed in it, norms, the residual stream and all after the blocks in fp32"

FORMATS: dict[FormatName, Format] = {
    "onnx": Format(
        "ONNX",
        ".onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        {
            "bf16": "ONNX Runtime has no bf16 for processors; choose --to openvino or torch, "
            "or --precision fp16, which halves the file",
        },
        computes={"fp16": _WIDENED, "int8": _INT8},
    ),
    "openvino": Format(
        "OpenVINO",
        ".xml",
        ("openvino",),
        {
            "any": "its reader of PyTorch's graphs can't interpolate positions; choose --to onnx",
        },
        computes={
            "bf16": "weights are fp32 in the file, and computed in bf16",
            "fp16": _WIDENED,
            "int8": f"{_INT8}, or in bf16 where the processor has it",
        },
    ),
    "torch": Format(
        "torch.export",
        ".pt2",
        refused={
            "int8": "PyTorch alone has no int8 kernels for it; choose --to onnx or openvino",
        },
        computes={"bf16": _HALF, "fp16": _HALF},
    ),
    "timm": Format(
        "timm",
        ".safetensors",
        refused={
            "any": "timm builds a network for one size of images; choose --to torch or onnx",
            "int8": "timm computes in floats, to which int8 weights would be widened again; choose "
            "--to onnx or openvino",
            "segmenter": "timm has no segmenters; choose --to onnx, openvino or torch",
            "detector": "timm has no detectors; choose --to onnx, openvino or torch",
        },
        inputs=("normalised",),
        shows_blocks=False,
        computes={
            "bf16": "weights are bf16 in the file; timm widens them to fp32 as it loads them",
            "fp16": "weights are fp16 in the file; timm widens them to fp32 as it loads them",
        },
    ),
}  # fmt: skip


def check_held(name: FormatName, *asked: str) -> None:
    """Raise UserError, in the table's words, for what the format can't hold."""
    known = FORMATS[name]
    for word in asked:
        if word in known.refused:
            what = WORDS.get(word, word)
            raise UserError(f"{known.title} can't hold {what}: {known.refused[word]}.")


def input_of(name: FormatName, asked: InputKind | None) -> InputKind:
    """What the file takes; raises UserError for what the format has not."""
    kinds = FORMATS[name].inputs
    if asked is not None and asked not in kinds:
        raise UserError(
            f"{FORMATS[name].title} takes {INPUTS[kinds[0]]}, so --input {asked} can't be had; "
            "leave it out, or choose another format."
        )
    return asked or kinds[0]


def has_packages(name: FormatName) -> bool:
    """Whether all packages that the format needs are installed."""
    return all(importlib.util.find_spec(each) for each in FORMATS[name].packages)


def check_packages(name: FormatName) -> None:
    """Raise UserError that names the extra where a package is missing."""
    for each in FORMATS[name].packages:
        if not importlib.util.find_spec(each):
            raise require_extra(each, "export", FORMATS[name].title)


def module_of(name: str) -> ModuleType:
    """The module that writes and loads a format; "reference" only loads."""
    return import_module(f"limbeck.exports.{name}")


assert tuple(FORMATS) == get_args(FormatName)
