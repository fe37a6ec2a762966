"""Files of tensors, strangers' too: the one door through which weights come in.

What a file says of itself is judged before memory is taken for it, and none of its code is run.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.files import MIB, check_regular, reason_of, utf8_name

Tensors = dict[str, Tensor]

# Tied weights are there twice or thrice; what repeats one number is there a million-fold.
_EXCESS = 4
_INTEGERS = (torch.int16, torch.int32, torch.int64)
_TABLES = ("index", "ids", "idxs", "tracked")
"""How the names of tables of indices end, and of a counter: what is no weight and no float."""


class NotFiniteWeights(UserError):
    """Weights with NaN or infinity, which nothing can be computed with."""


def check_file(path: Path) -> None:
    """Raise UserError for what must not be opened: no regular file, or one that is mostly holes."""
    try:
        check_regular(path)
        size = path.stat().st_size
        is_hollow = size > 64 * MIB and _count_written(path) < size / 8
    except (OSError, ValueError) as error:
        raise UserError(
            f"Can't read {path}: {reason_of(error)}; make it readable, or get it again."
        ) from error
    if is_hollow:
        raise UserError(
            f"Can't read {path}: most of its {size:,} bytes were never written, as of a download "
            "that has not finished; get it again."
        )


def _count_written(path: Path) -> int:
    """Bytes of a file that are no hole; where the disk can't tell, all are taken as written."""
    if not hasattr(os, "SEEK_HOLE"):
        return path.stat().st_size
    written = start = 0
    with open(path, "rb") as stream:
        while True:
            try:
                start = os.lseek(stream.fileno(), start, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                return written
            end = os.lseek(stream.fileno(), start, os.SEEK_HOLE)
            written, start = written + end - start, end


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises UserError if it can't be read."""
    check_file(path)
    try:
        with utf8_name(path) as name, safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # of a damaged header it raises more than its own error
        raise UserError(
            f"Can't read {path} as safetensors: {error}; it is damaged or no such file, get it "
            "again."
        ) from error
    check_plain(weights, path)
    return weights, metadata


def check_plain(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError for tensors that are not the file's own numbers, or more than it can hold."""
    for name, value in weights.items():
        kind = _kind_of(value)
        if kind:
            raise UserError(
                f"{path}: the tensor '{name}' is {kind}, not a plain one; take a file of the "
                "whole, unquantised weights."
            )
    claimed, size = sum(value.nbytes for value in weights.values()), path.stat().st_size
    if claimed > _EXCESS * size + 16 * MIB:
        raise UserError(
            f"{path} has {size:,} bytes and claims tensors of {claimed:,}, which repeat what is in "
            "it; it is damaged or made to fill the memory, get it again."
        )


def _kind_of(value: Tensor) -> str:
    if value.is_quantized:
        return "quantised"
    if value.layout != torch.strided:
        return "sparse"
    if value.is_nested:
        return "nested"
    return "" if value.device.type == "cpu" else f"on the device '{value.device.type}'"


def as_float32(weights: Mapping[str, Tensor], where: Path | str) -> Tensors:
    """The weights as float32, whatever floating type they were stored in.

    Tables of indices stay as they are. Raises UserError for other types: integers without their
    scale, complex numbers and truth values are no weights.
    """
    floats: Tensors = {}
    for name, value in weights.items():
        is_table = value.ndim == 0 or name.endswith(_TABLES)
        if value.dtype in _INTEGERS and is_table:
            floats[name] = value
            continue
        try:
            if not value.is_floating_point():
                raise TypeError
            floats[name] = value.float()
        except (TypeError, RuntimeError) as error:
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"{where}: the tensor '{name}' is of {kind}, which are no weights but what is left "
                "of them after a quantisation, or something else; take the file in float32, "
                "bfloat16 or float16."
            ) from error
    return floats


def find_not_finite(weights: Mapping[str, Tensor]) -> str:
    """The first tensor with NaN or infinity, in words; '' where all are finite."""
    for name, value in weights.items():
        if not value.is_floating_point() or value.is_meta or not value.numel():
            continue
        low, high = torch.aminmax(value.detach())  # NaN wins; without a mask as big as the tensor
        if not (torch.isfinite(low) and torch.isfinite(high)):
            count = int((~torch.isfinite(value)).sum())
            return f"'{name}' holds NaN or infinity ({count:,} of {value.numel():,} values)"
    return ""


def check_finite(weights: Mapping[str, Tensor] | nn.Module, where: Path | str) -> None:
    """Raise NotFiniteWeights that names the tensor; of a network its parameters are looked at."""
    own = dict(weights.named_parameters()) if isinstance(weights, nn.Module) else weights
    wrong = find_not_finite(own)
    if wrong:
        raise NotFiniteWeights(
            f"The weights of {where} can't be used: {wrong}; the file is damaged, or its training "
            "had failed. Get it again, or take another."
        )


def compare(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What keeps ``weights`` from being those of a model whose state is ``own``, by kind."""
    return {
        "missing": sorted(own.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - own.keys()),
        "misshapen": [
            f"{name} is {list(weights[name].shape)} instead of {list(own[name].shape)}"
            for name in sorted(own.keys() & weights.keys())
            if own[name].shape != weights[name].shape
        ],
    }
