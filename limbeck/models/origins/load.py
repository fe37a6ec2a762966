"""``load_encoder``: any source of weights as an encoder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from limbeck.config import import_own
from limbeck.errors import UserError, did_you_mean
from limbeck.models.dense.build import at_img_size
from limbeck.models.dense.headed import Headed
from limbeck.models.dense.segmenter import Segmenter
from limbeck.models.encoder import Encoder, EncoderFacts
from limbeck.models.finished import (
    FINISHED_FILE,
    RECORD_FILE,
    WEIGHTS_FILE,
    Savable,
    describe_missing,
    is_finished_student,
    load_finished,
    read_record,
)
from limbeck.models.origins.checkpoint import (
    at_size,
    check_patch_size,
    drop_classifier,
    load_weights,
)
from limbeck.models.origins.files import SUFFIXES, read_weights
from limbeck.models.origins.huggingface import load_huggingface
from limbeck.models.origins.layouts import Grid, spread_heads
from limbeck.models.origins.names import check_source, split_source
from limbeck.models.origins.repository import read_hub_config
from limbeck.models.origins.segmenters import read_segmenter
from limbeck.models.origins.timm import load_timm
from limbeck.models.tensor_files import check_finite
from limbeck.models.windows import to_grid
from limbeck.records import Features, Tap


def load_encoder(
    source: str | Path,
    *,
    img_size: int | Sequence[int] | None = None,
    patch_size: int | None = None,
    num_heads: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    **overrides: Any,
) -> Encoder:
    """An encoder from ``timm:NAME``, ``hf:NAME`` or a path, in evaluation mode.

    A path is a weights file (safetensors, or torch's format with nothing but tensors and plain
    data), a folder as Hugging Face or timm write it, or a finished run. ``facts.origin`` says the
    source, its layout, licence where known, weight hash, and in notes what was assumed, left out
    or interpolated. ``module:function`` calls a function of your own with the arguments that were
    given; it returns an Encoder.

    ``img_size`` (pixels, one side or (height, width)): another one than the weights' interpolates
    the positions. ``num_heads``: one count or one per block, for files that do not tell it.
    ``num_classes``: 0 leaves the classifier out. ``patch_size``: must be the weights' own (timm
    models resample theirs). With timm: further arguments of ``timm.create_model``, and
    ``pretrained=False`` for random weights. With a weights file: ``model_name``, a timm name,
    where the tensors do not tell the architecture. A classifier of timm that is none of the vision
    Transformers whose inner tensors are known gives its logits alone.

    Raises UserError for a source that can't be found or reached, for weights that do not fit to
    the last tensor, and (NotFiniteWeights) for such with NaN or infinity.
    """
    source = str(source)
    check_source(source, any_model=True)
    _check_positive(img_size=img_size, patch_size=patch_size, num_heads=num_heads)
    size = None if img_size is None else to_grid(img_size)
    heads = num_heads if num_heads is None or isinstance(num_heads, int) else tuple(num_heads)
    shared = {
        "img_size": size, "patch_size": patch_size, "num_heads": heads, "num_classes": num_classes,
    }  # fmt: skip
    encoder = _load(source, shared, overrides)
    check_finite(encoder, source)
    return encoder


def _load(source: str, shared: dict[str, Any], overrides: dict[str, Any]) -> Encoder:
    scheme, name = split_source(source)
    if scheme == "own":
        return _call_own(name, {k: v for k, v in shared.items() if v is not None} | overrides)
    if scheme == "timm":
        is_pretrained = overrides.pop("pretrained", True)
        return load_timm(name, **shared, pretrained=is_pretrained, model_args=overrides)
    model_name = overrides.pop("model_name", None) if scheme is None else None
    if overrides:
        word = next(iter(overrides))
        raise UserError(
            f"load_encoder('{source}') takes no '{word}'.{did_you_mean(word, shared)} Arguments of "
            "timm.create_model are for timm: sources."
        )
    if scheme == "hf":
        return load_huggingface(name, **shared)
    return _load_path(Path(name), model_name, shared)


def _call_own(address: str, arguments: dict[str, Any]) -> Encoder:
    build = import_own(address, "source")
    if not callable(build):
        raise UserError(f"'{address}' is a {type(build).__name__}, not a function of an Encoder.")
    encoder = build(**arguments)
    if not isinstance(encoder, Encoder):
        raise UserError(
            f"'{address}' returned a {type(encoder).__name__}, not a limbeck.Encoder; see "
            "examples/own_teacher.py."
        )
    _ask_own(address, encoder.eval())
    return encoder


@torch.no_grad()
def _ask_own(address: str, encoder: Encoder) -> None:
    """Show it two grey images, so that what no run could use is told before one begins."""
    if not isinstance(getattr(encoder, "facts", None), EncoderFacts):
        raise UserError(f"'{address}': its encoder has no EncoderFacts as facts.")
    facts, offered = encoder.facts, encoder.offered_taps()
    kind = next((kind for kind in ("output", "logits") if kind in offered), None)
    if kind is None:
        return
    said = encoder(torch.full((2, 3, *facts.img_size), 0.5), None, (Tap(kind),))
    if not isinstance(said, Features) or Tap(kind) not in said.taps:
        what = f"without Tap('{kind}')" if isinstance(said, Features) else "in their place"
        raise UserError(
            f"'{address}': asked for Tap('{kind}'), its encoder returned a {type(said).__name__} "
            f"{what}; it is to return limbeck.Features with just the taps that it was asked for."
        )
    num_tokens = facts.num_prefix_tokens + facts.grid[0] * facts.grid[1]
    wanted = (2, facts.num_classes) if kind == "logits" else (2, num_tokens, facts.output_dim)
    shape = tuple(said.taps[Tap(kind)].shape)
    shape = shape[:2] if kind == "logits" else shape  # of a dense task they are maps
    if shape != wanted:
        raise UserError(
            f"'{address}': Tap('{kind}') of two images has the shape {shape}, and by its encoder's "
            f"facts it would be {wanted}; correct one of them."
        )


def _check_positive(**numbers: int | Sequence[int] | None) -> None:
    for name, value in numbers.items():
        values = [] if value is None else [value] if isinstance(value, int) else value
        if not all(isinstance(number, int) and number > 0 for number in values):
            raise UserError(f"{name} = {value} is refused; give whole numbers above 0.")


def _load_path(path: Path, model_name: str | None, shared: dict[str, Any]) -> Encoder:
    if model_name is not None:
        return load_timm(model_name, **shared, weights_file=path)
    if is_finished_student(path):
        return _load_finished(path, **shared)
    # A weights file of a hub folder is told by the config beside it.
    is_hub_file = path.name in ("model.safetensors", "pytorch_model.bin")
    folder = path.parent if is_hub_file else path
    if read_hub_config(folder / "config.json") is not None:
        return load_huggingface(folder, **shared)
    if path.is_dir():
        raise UserError(_describe_folder(path))
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is no weights file ({', '.join(SUFFIXES)}).")
    weights, info = read_weights(path)
    segmenter = read_segmenter(weights, info, path)
    if segmenter is not None:
        check_patch_size(segmenter.facts.patch_size, shared["patch_size"], path)
        return _resized_segmenter(segmenter, path, shared["img_size"], shared["num_classes"])
    return load_weights(weights, info, path, **shared)


def _describe_folder(folder: Path) -> str:
    names = {entry.name for entry in folder.iterdir()}
    runs = sorted(each.name for each in folder.iterdir() if is_finished_student(each))
    if runs:
        shown = ", ".join(runs[:5]) + (" and others" if len(runs) > 5 else "")
        return (
            f"{folder} has no student of its own yet; name one of the runs in it ({shown}), or "
            "run the same command again if that has not finished."
        )
    if {RECORD_FILE, WEIGHTS_FILE} <= names:
        read_record(folder)  # says what is wrong with it
    missing = [name for name in (RECORD_FILE, WEIGHTS_FILE) if name not in names]
    if FINISHED_FILE in names and missing:
        return describe_missing(folder, missing[0])
    if {"checkpoint.pt", "fingerprint.json", RECORD_FILE, WEIGHTS_FILE} & names:
        return (
            f"The run in {folder} has not finished, so there is no student yet; run the same "
            "command again to continue it."
        )
    files = [name for name in sorted(names) if Path(name).suffix in SUFFIXES]
    if files:
        return f"{folder} has no config.json; pass one of its files: {', '.join(files)}."
    return f"{folder} holds no finished run, no config.json and no weights file."


def _load_finished(
    path: Path,
    *,
    img_size: Grid | None,
    patch_size: int | None,
    num_heads: int | tuple[int, ...] | None,
    num_classes: int | None,
) -> Savable:
    encoder = load_finished(path)
    facts = encoder.facts
    check_patch_size(facts.patch_size, patch_size, path)
    if num_heads is not None:
        for block, count in enumerate(spread_heads(num_heads, facts.depth)):
            encoder.set_num_heads(block, count)
        facts = encoder.facts
    is_same = img_size in (None, facts.img_size) and num_classes in (None, facts.num_classes)
    notes = list(facts.origin.get("notes", []))
    origin = facts.origin | {"layout": "finished student", "notes": notes}
    if is_same:
        encoder.facts = replace(facts, origin=origin)
        return encoder
    if isinstance(encoder, Segmenter):
        return _resized_segmenter(encoder, path, img_size, num_classes)
    if isinstance(encoder, Headed):
        raise UserError(
            f"{path} is a detector of {facts.num_classes} classes in images of "
            f"{facts.img_size[0]} px, and no other can be made of it; leave img_size and "
            "num_classes away."
        )
    architecture = dict(facts.architecture)
    weights = drop_classifier(encoder.model.state_dict(), architecture, num_classes, notes)
    again = at_size(weights, architecture, origin, facts.input_grid, img_size or facts.img_size)
    again.mask_token = encoder.mask_token
    return again


def _resized_segmenter(
    segmenter: Segmenter, path: Path, img_size: Grid | None, num_classes: int | None
) -> Segmenter:
    facts = segmenter.facts
    if num_classes not in (None, facts.num_classes):
        raise UserError(
            f"{path} is a segmenter of {facts.num_classes} classes, and no other can be made of "
            "it; leave num_classes away, or name the encoder that it was started from."
        )
    return at_img_size(segmenter, img_size or facts.img_size)
