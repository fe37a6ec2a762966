"""Further test images: those of another place or look, and ImageNet's variants.

A set of only some of the classes (ImageNet-A and -R have 200 of 1,000) is asked among these, as it
is published. ReaL (arXiv 2006.07159) gives the usual images of ImageNet other labels, several or
none for an image.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from limbeck.data.open import open_source
from limbeck.data.source import Source
from limbeck.documents import read_json
from limbeck.errors import UserError
from limbeck.evaluation.embed import Embeddings
from limbeck.evaluation.linear import LinearProbe
from limbeck.evaluation.scores import Score, is_in_top, score_of
from limbeck.models.encoder import Encoder
from limbeck.recipes.look.claims import are_imagenet, columns_among, columns_of, in_order_of
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.run.images import Images

VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True)
class Shifted:
    """The sets by name, the classes that the linear probe knows, and ReaL's labels: classes of each
    of ImageNet's validation images, in the order of their numbers from 1."""

    sources: Mapping[str, Source] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    real: tuple[tuple[int, ...], ...] = ()


def open_shifted(config: EvaluateConfig, images: Images) -> Shifted:
    """The sets that are asked for; raises UserError for a set without a name or without labels."""
    classes = images.whole.classes
    if not images.is_labelled and (config.test_on or config.real_labels):
        raise UserError(
            "Further test sets need labelled images to learn probes from; leave out --test-on and "
            "--real-labels."
        )
    sources: dict[str, Source] = {}
    for text in config.test_on:
        name, is_named, root = text.partition("=")
        if not (re.fullmatch(r"[a-z][a-z0-9-]*", name) and is_named and root):
            raise UserError(
                f"--test-on {text}: say NAME=FOLDER, such as rain=photos/rain; a name has small "
                "letters, numbers and hyphens."
            )
        if name in sources:
            raise UserError(f"--test-on names {name} twice; give each set a name of its own.")
        sources[name] = open_source(root, config.data, config.data.eval_split)
        if not sources[name].classes:
            raise UserError(
                f"{root} has no labels to score by; sort its images into class folders."
            )
    real = () if config.real_labels is None else _read_real(config.real_labels, classes)
    return Shifted(sources, classes, real)


def _read_real(file: Path, classes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    if not are_imagenet(classes):
        raise UserError("--real-labels are of ImageNet's validation images; leave the option out.")
    found: list[list[int]] = read_json(file, list[list[int]])
    if any(not 0 <= label < len(classes) for labels in found for label in labels):
        raise UserError(f"{file} has labels that are no class from 0 to {len(classes) - 1}.")
    return tuple(map(tuple, found))


def shifted_scores(
    shifted: Shifted,
    encoder: Encoder,
    usual: Embeddings,
    probe: LinearProbe,
    embed: Callable[[Encoder, Source], Embeddings],
    notes: list[str],
) -> dict[str, Score]:
    """Top-1 of each set, of the encoder's classifier ("NAME_top1") and of its linear probe
    ("NAME_linear_top1"); "real_top1" and "real_linear_top1" of the usual images.

    What nobody can be asked about is told in ``notes``.
    """
    scores: dict[str, Score] = {}
    for name, source in shifted.sources.items():
        said = embed(encoder, source)
        assert said.labels is not None
        for who, logits in _answers(shifted, encoder, source.classes, said, probe).items():
            how = f"top-1 of {len(source.classes)} classes of {name}"
            scores[f"{name}_{who}"] = score_of(is_in_top(logits, said.labels), how)
        if not any(key.startswith(f"{name}_") for key in scores):
            told = f"{name}: its classes are not among those of the images or of the network."
            notes += [] if told in notes else [told]
    if shifted.real:
        columns = columns_of(encoder, shifted.classes)
        said_usual = {"linear_top1": probe.logits(usual.features.to(probe.weight.device)).cpu()}
        if usual.logits is not None and columns is not None:
            said_usual["top1"] = usual.logits  # in the images' order already
        for who, logits in said_usual.items():
            scores[f"real_{who}"] = _real_score(logits, usual.keys, shifted.real)
    return scores


def _answers(
    shifted: Shifted, encoder: Encoder, classes: tuple[str, ...], said: Embeddings,
    probe: LinearProbe,
) -> dict[str, Tensor]:  # fmt: skip
    """Logits in the order of a set's classes, by who gives them."""
    answers = {}
    own = columns_among(encoder, classes)
    if own is not None and said.logits is not None:
        answers["top1"] = in_order_of(said.logits, own)
    if set(classes) <= set(shifted.classes):
        places = [shifted.classes.index(name) for name in classes]
        if max(places) < len(probe.bias):
            logits = probe.logits(said.features.to(probe.weight.device)).cpu()
            answers["linear_top1"] = logits[:, places]
    return answers


def _real_score(logits: Tensor, keys: tuple[str, ...], real: tuple[tuple[int, ...], ...]) -> Score:
    """Is the answer one of an image's labels? Images without any are left out, as published."""
    rows, hits = logits.argmax(dim=1).tolist(), []
    for key, answer in zip(keys, rows, strict=True):
        found = VALIDATION.search(key)
        if found is None or not 1 <= int(found[1]) <= len(real):
            raise UserError(
                f"{key} is no image of ImageNet's validation set (ILSVRC2012_val_00000001), of "
                "which --real-labels are; name that set with --data.eval-root."
            )
        if labels := real[int(found[1]) - 1]:
            hits.append(answer in labels)
    return score_of(torch.tensor(hits), "an answer is one of ReaL's labels")
