"""timm's own models: weights from its hub, or a file in the names of a given timm model."""

import logging
import urllib.error
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from limbeck.documents import to_json
from limbeck.errors import UserError
from limbeck.models.classifier import ClassifierEncoder
from limbeck.models.encoder import Encoder
from limbeck.models.finished import weight_hash
from limbeck.models.origins.checkpoint import interpolation_note, resized
from limbeck.models.origins.files import left_out_notes, read_weights
from limbeck.models.origins.hub import REMEDY, fetch
from limbeck.models.origins.layouts import Grid, Weights, spread_heads
from limbeck.models.shapes import (
    check_model_name,
    is_hierarchical,
    is_tiny_vit,
    known_model_names,
    narrowed,
    pooling_of,
)
from limbeck.models.stated import check_size
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.vit import wrap
from limbeck.models.windows import timm_kwargs, to_grid

log = logging.getLogger("limbeck")

_RANDOM = ("Random weights (pretrained=False).",)
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")

# Of a plain ViT, of a Hiera or Swin, and of a Hiera as published.
_CLASSIFIERS = ("head.weight", "head.fc.weight", "head.projection.weight")

# What of a timm folder's pretrained_cfg describes its weights; the rest is about where they lay.
_CONFIG_KEYS = ("input_size", "fixed_input_size", "mean", "std", "num_classes", "license")


def load_timm(
    name: str,
    *,
    img_size: Grid | None = None,
    patch_size: int | None = None,
    num_heads: int | tuple[int, ...] | None = None,
    num_classes: int | None = None,
    weights_file: Path | None = None,
    config: dict[str, Any] | None = None,
    pretrained: bool = True,
    model_args: dict[str, Any] | None = None,
) -> Encoder:
    """A timm model by name (with or without a pre-trained tag), in evaluation mode.

    A vision Transformer that is supported is a ``TimmEncoder``, another model a
    ``ClassifierEncoder``, whose patches and heads can't be set and whose classifier can't be left
    out.

    Weights come from ``weights_file`` if given, else from timm's hub; with ``pretrained=False``
    they are random, drawn from torch's global generator. ``config`` is what a timm folder says of
    its weights (``pretrained_cfg``); ``model_args`` go to ``timm.create_model``.
    ``facts.origin["weight_hash"]`` is that of the encoder's weights at their own size, whatever
    ``img_size`` and ``patch_size``. Raises UserError where there are no weights, they can't be
    fetched, or do not fit.
    """
    shape, name = narrowed(name), check_model_name(name, any_model=True)
    base = name.partition(".")[0]
    if shape and pretrained and weights_file is None:
        raise UserError(
            f"timm has no weights for a '{base}' with {shape}; pass a file of such, or leave the "
            "weights out."
        )
    source = f"timm:{name}" if weights_file is None else str(weights_file)
    if pretrained and "window_sizes" in (model_args or {}):
        raise UserError(
            f"{source}: the windows of weights follow from the image size; choose img_size instead "
            "of window_sizes."
        )
    known = timm.get_pretrained_cfg(name)
    facts = (known.to_dict() if known else {}) | _described(config)
    overlay: dict[str, Any] = {}
    weights: Weights | None = None
    notes = [] if pretrained else list(_RANDOM)
    if weights_file is not None:
        weights, info = read_weights(weights_file)
        notes += left_out_notes(info.network.left_out) + info.notes
        facts["num_classes"] = _count_classes(weights, facts)
        overlay = {"state_dict": weights, "custom_load": False}
    elif pretrained:
        overlay = _locate(name, source)
    model_args = dict(model_args or {})
    own_size = to_grid(model_args.pop("img_size", facts.get("input_size", (224, 224))[-2:]))
    if pretrained and num_classes not in (None, 0, facts["num_classes"]):
        raise UserError(
            f"{source} has {facts['num_classes']} classes, not {num_classes}; leave num_classes "
            "away (limbeck finetune makes a new classifier)."
        )
    if base not in known_model_names():
        if (patch_size, num_heads) != (None, None) or num_classes == 0:
            raise UserError(
                f"{source} is a classifier without patches and heads that could be set; leave "
                "patch_size, num_heads and num_classes out."
            )
        if facts.get("fixed_input_size"):
            model_args["img_size"] = list(img_size or own_size)
        model_args["num_classes"] = facts["num_classes"] if num_classes is None else num_classes
        size = img_size or own_size
        return _load_classifier(
            name, source, model_args, facts, overlay, pretrained, size, config, notes
        )
    if patch_size is not None and is_hierarchical(base):
        raise UserError(f"{source} is an encoder of stages; leave patch_size away.")
    is_resized_here = bool(pooling_of(base, 0)) or is_tiny_vit(base)
    if pretrained and is_resized_here and img_size not in (None, own_size):
        # timm does not interpolate a Hiera's positions as it reads them, and a TinyViT's biases
        # otherwise than published.
        encoder = load_timm(
            name, num_heads=num_heads, num_classes=num_classes, weights_file=weights_file,
            config=config, model_args=shape | model_args,
        )  # fmt: skip
        return resized(encoder, img_size)
    classes = facts["num_classes"] if num_classes is None else num_classes
    plain = shape | pooling_of(base, classes) | model_args
    plain |= {"img_size": list(img_size or own_size), "num_classes": classes}
    if patch_size is not None:
        plain["patch_size"] = patch_size
    if isinstance(num_heads, int) and not pretrained:
        plain["num_heads"] = num_heads
    _check_plain(plain)
    overlay |= _described(facts)
    model = _create(name, plain, overlay, pretrained, source)
    plain["global_pool"] = getattr(model, "global_pool", "avg")
    architecture = {"kind": "timm", "name": base, "kwargs": plain}
    architecture |= {key: facts.get(key, (0.5, 0.5, 0.5)) for key in ("mean", "std")}
    encoder = wrap(model, architecture=architecture, origin={})
    if pretrained:
        notes += _size_notes(encoder, own_size, weights)
    if num_heads is not None:
        for block, count in enumerate(spread_heads(num_heads, encoder.facts.depth)):
            encoder.set_num_heads(block, count)
    for note in notes:
        log.info("%s: %s", source, note)
    hashed = weight_hash(_before_resizing(model, weights, overlay.get("file")))
    origin = _origin(source, facts, hashed, notes, config, encoder.facts.num_classes)
    encoder.facts = replace(encoder.facts, origin=origin)
    return encoder.eval()


def _load_classifier(
    name: str,
    source: str,
    kwargs: dict[str, Any],
    facts: dict[str, Any],
    overlay: dict[str, Any],
    pretrained: bool,
    img_size: Grid,
    config: dict[str, Any] | None,
    notes: list[str],
) -> ClassifierEncoder:
    _check_plain(kwargs)
    model = _create(name, kwargs, overlay | _described(facts), pretrained, source)
    for note in notes:
        log.info("%s: %s", source, note)
    hashed = weight_hash(model.state_dict())
    return ClassifierEncoder(
        model,
        name=name.partition(".")[0],
        kwargs=kwargs,
        origin=_origin(source, facts, hashed, notes, config, model.num_classes),
        img_size=img_size,
        mean=tuple(facts.get("mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(facts.get("std", IMAGENET_DEFAULT_STD)),
    ).eval()


def _count_classes(weights: Weights, facts: dict[str, Any]) -> int:
    """Rows of the classifier, whose name timm knows; of two, the first."""
    head = facts.get("classifier") or "head"
    own = f"{head if isinstance(head, str) else head[0]}.weight"
    rows = [weights[name] for name in (own, *_CLASSIFIERS) if name in weights]
    return rows[0].shape[0] if rows else 0


def _origin(
    source: str,
    facts: dict[str, Any],
    hashed: str,
    notes: list[str],
    config: dict[str, Any] | None,
    num_classes: int,
) -> dict[str, Any]:
    origin = {
        "source": source,
        "layout": "timm",
        "licence": facts.get("license"),
        "weight_hash": hashed,
        "notes": notes,
    }
    label_names = (config or {}).get("label_names")
    # A dictionary stands for indices with gaps: no order of classes.
    if isinstance(label_names, list) and len(label_names) == num_classes:
        origin["classes"] = list(map(str, label_names))
    return origin


def _described(config: dict[str, Any] | None) -> dict[str, Any]:
    return {key: config[key] for key in _CONFIG_KEYS if config and config.get(key) is not None}


def _check_plain(kwargs: dict[str, Any]) -> None:
    try:
        to_json(kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"Arguments of a timm model must be plain data ({error}), so that the model can be "
            "rebuilt from its record; give names, numbers or None."
        ) from error


def _locate(name: str, source: str) -> dict[str, Any]:
    """What tells timm where the weights lie; fetched by us, for the hub's client retries long."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        tagged = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        known = f"It has {', '.join(tagged)}; or" if tagged else "Choose another model, or"
        raise UserError(f"timm has no weights for '{name}'. {known} {REMEDY}.")
    if not config.hf_hub_id:
        return {}
    names = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES
    file = fetch(config.hf_hub_id, names, source)
    # Only weights in another program's format (.npz) keep timm's special way of reading.
    return {"file": str(file), "custom_load": file.suffix == ".npz"}


def _create(
    name: str, kwargs: dict[str, Any], overlay: dict[str, Any], pretrained: bool, source: str
) -> nn.Module:
    if "state_dict" in overlay:
        _check_size(name, kwargs, overlay["state_dict"], source)
    try:
        # The fresh weights that are overwritten must not cost the caller's random state.
        with torch.random.fork_rng(devices=[], enabled=pretrained):
            model = timm.create_model(
                name,
                pretrained=pretrained,
                pretrained_cfg_overlay=overlay,
                **timm_kwargs(name, kwargs),
            )
    except urllib.error.URLError as error:
        raise UserError(f"Can't get '{source}' ({error.reason}); {REMEDY}.") from error
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"timm can't make '{name}' of {source} with {kwargs}: {reason}.") from error
    # timm keeps the tensors it was handed; the model would hold them twice.
    model.pretrained_cfg.pop("state_dict", None)
    return model


def _check_size(name: str, kwargs: dict[str, Any], weights: Weights, source: str) -> None:
    """Raise UserError for a network far larger than its weights, before memory is taken for it."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            skeleton = timm.create_model(name, **timm_kwargs(name, kwargs))
    except Exception:  # some can't be built without memory, and what is wrong says so itself
        return
    check_size(skeleton, sum(value.numel() for value in weights.values()), source)


def _before_resizing(model: nn.Module, weights: Weights | None, file: str | None) -> Weights:
    """The model's weights, but what timm resized (positions, patches) as it was read."""
    if weights is None and file is not None and not file.endswith(".npz"):
        weights, _ = read_weights(file)
    own, read = model.state_dict(), weights or {}
    resized = {
        name: read[name] for name in own.keys() & read.keys() if read[name].shape != own[name].shape
    }
    return own | resized


def _size_notes(encoder: TimmEncoder, own_size: Grid, weights: Weights | None) -> list[str]:
    facts, model = encoder.facts, encoder.model
    table = getattr(model, "pos_embed", None)
    if weights is not None and "pos_embed" in weights and table is not None:
        rows = (weights["pos_embed"].shape[1], table.shape[1])
        return (
            [] if rows[0] == rows[1] else [f"Positions interpolated from {rows[0]} to {rows[1]}."]
        )
    if facts.img_size == own_size or weights is not None:
        return []
    own_grid = own_size[0] // facts.patch_size, own_size[1] // facts.patch_size
    if table is not None:
        return [interpolation_note(own_grid, facts.grid)]
    kind = "Rotary" if getattr(model, "rope", None) is not None else "Relative"
    return [f"{kind} positions are those of {facts.grid[0]} x {facts.grid[1]} patches."]
