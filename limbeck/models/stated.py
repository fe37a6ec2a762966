"""A network as a file or an option states it, checked before anything is built of it.

timm's ``create_model`` would open what a name asks for (``hf-hub:``, ``local-dir:``) and what some
arguments point at (``pretrained``, ``checkpoint_path``), and builds whatever size it is told.
"""

import functools
import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

import timm
from torch import nn

from limbeck.errors import UserError, did_you_mean
from limbeck.models.shapes import known_model_names

MAX_SIDE = 8192
"""Pixels of an image's side: four times what any of timm's encoders was published for."""

_LEAST = {"img_size": 1, "patch_size": 1, "embed_dim": 1, "depth": 1, "num_heads": 1}
_MOST = {
    "img_size": MAX_SIDE, "patch_size": 1024, "embed_dim": 2**16, "depth": 1024, "depths": 1024,
    "num_heads": 1024, "reg_tokens": 2**12, "num_reg_tokens": 2**12,
}  # fmt: skip
_MOST_ELSE = 2**20
_MAX_LIST = 64
_MAX_TEXT = 64
_SPARE = 2**27
"""Values that a network may have beyond those of its weights: tables that are computed."""


def check_name(name: str) -> None:
    """Raise UserError unless it is the plain name of one of timm's vision Transformers."""
    base = name.partition(".")[0]
    if base not in known_model_names():
        raise UserError(
            f"'{name[:_MAX_TEXT]}' is no vision Transformer of timm."
            f"{did_you_mean(name[:_MAX_TEXT], known_model_names())} Only plain names are taken, "
            "nothing that would be fetched or read from elsewhere."
        )


def check_kwargs(name: str, kwargs: Mapping[str, Any], known: Collection[str] | None) -> None:
    """Raise UserError for arguments that are not ``known`` ones, plain and of a usual size.

    Where ``known`` is None only that they are plain is looked at: the class refuses the others.
    """
    for key, value in kwargs.items():
        if known is not None and key not in known:
            raise UserError(
                f"timm can't build '{name}' with '{key[:_MAX_TEXT]}', which is none of its "
                f"arguments.{did_you_mean(key[:_MAX_TEXT], known)} Leave it out."
            )
        if not _is_usual(key, value):
            shown = repr(value)
            shown = shown if len(shown) < _MAX_TEXT else shown[: _MAX_TEXT - 3] + "..."
            raise UserError(
                f"'{name}' can't be built with {key} = {shown}, which no network has; correct it, "
                "or get the file again that says so."
            )


def _is_usual(key: str, value: Any, depth: int = 0) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT and ":" not in value and "/" not in value
    if isinstance(value, int):
        return _LEAST.get(key, 0) <= value <= _MOST.get(key, _MOST_ELSE)
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= _MOST_ELSE
    is_list = isinstance(value, list | tuple) and len(value) <= _MAX_LIST and depth < 3
    return is_list and all(_is_usual(key, each, depth + 1) for each in value)


@functools.cache
def arguments_of(name: str) -> frozenset[str]:
    """What may be stated of a model of timm: the arguments of the classes in its file."""
    entry = timm.model_entrypoint(name.partition(".")[0])
    module = inspect.getmodule(entry)
    kinds = [each for each in vars(module).values() if isinstance(each, type)]
    own = [kind for kind in kinds if issubclass(kind, nn.Module)]
    named = {key for kind in own for key in inspect.signature(kind).parameters}
    # A TinyViT's windows follow from the image size, which its class does not take.
    return frozenset(named | {"img_size"}) - {"args", "kwargs", "device", "dtype"}


def check_size(model: nn.Module, num_values: int, where: str) -> None:
    """Raise UserError for a network (on the meta device) far larger than the weights for it."""
    own = [*model.parameters(), *model.buffers()]
    wanted = sum(value.numel() for value in own)
    if wanted > 2 * num_values + _SPARE:
        raise UserError(
            f"{where}: the network that is stated has {wanted:,} values and the weights beside it "
            f"have {num_values:,}; they do not belong together, get the folder again."
        )
