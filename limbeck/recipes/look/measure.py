"""What ``analyze`` measures: all networks on the same images, each shown to each only once."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from limbeck.data.loader import eval_batches
from limbeck.data.open import data_fingerprint
from limbeck.data.sample import draw_sample, num_classes_of
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import Source
from limbeck.errors import UserError
from limbeck.evaluation.attention import AttentionObserver
from limbeck.evaluation.blocks import BlockPools, probe_blocks
from limbeck.evaluation.cka import FEWEST, LayerGrams, MinibatchCka
from limbeck.evaluation.layers import Observer, watch, without_pixels
from limbeck.models.encoder import Encoder
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.look.claims import seen_images
from limbeck.recipes.look.options import AnalyzeConfig
from limbeck.recipes.run.images import Images
from limbeck.recipes.run.networks import load_vit
from limbeck.records import Batch

log = logging.getLogger("limbeck")


@dataclass(frozen=True)
class Subject:
    """A network that is looked into, and its name for people."""

    name: str
    source: str
    encoder: Encoder

    def plain(self) -> dict[str, Any]:
        """JSON-ready data: what it is, not where it lies."""
        facts = self.encoder.facts
        return {
            "name": self.name,
            "weights": facts.origin.get("weight_hash") or self.source,
            "architecture": facts.architecture,
            "depth": facts.depth,
            "embed_dim": facts.embed_dim,
            "num_heads": list(facts.num_heads),
            "patch_size": facts.patch_size,
            "img_size": list(facts.img_size),
        }


@dataclass(frozen=True)
class Shown:
    """The images that are shown, and how they were chosen."""

    source: Source
    origin: str
    sampling: str
    seed: int
    num_classes: int

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "from": self.origin,
            "num_images": len(self.source),
            "sampling": self.sampling,
            "seed": self.seed,
            "num_classes": self.num_classes,
            "num_classes_covered": num_classes_of(self.source),
            "fingerprint": data_fingerprint(self.source),
        }


def load_subjects(config: AnalyzeConfig) -> list[Subject]:
    """The networks in their order, and the reference after them unless it is one of them."""
    sources = list(config.runs)
    names = list(config.names) or short_names(sources)
    if config.reference is not None and config.reference not in sources:
        sources.append(config.reference)
        own = short_names(sources)[-1]
        names.append(own if own not in names else f"{own} (reference)")
    subjects = []
    for name, source in zip(names, sources, strict=True):
        is_fine_tuned = bool(config.keep_blocks) and source in config.runs
        encoder = (load_vit if is_fine_tuned else load_encoder)(source).requires_grad_(False)
        subjects.append(Subject(name, source, encoder))
        if is_fine_tuned:
            _check_blocks(subjects[-1], max(config.keep_blocks))
    return subjects


def _check_blocks(subject: Subject, most: int) -> None:
    """Before days of fine-tuning, not after."""
    depth = subject.encoder.facts.depth
    if most > depth:
        raise UserError(
            f"--keep-blocks {most}: {subject.source} has {depth} blocks; analyse networks of other "
            "depth one by one."
        )


def short_names(sources: Sequence[str]) -> list[str]:
    """What tells sources apart: their last words, or as many more as that needs."""
    words = [re.split(r"[/\\]|^(?:timm|hf):", source.rstrip("/\\")) for source in sources]
    words = [[word for word in each if word] for each in words]
    longest = max(map(len, words))
    for count in range(1, longest + 1):
        names = ["/".join(each[-count:]) for each in words]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def file_name(name: str) -> str:
    """A network's name as a part of a folder's."""
    return re.sub(r"[^\w.-]+", "-", name)


def draw_images(config: AnalyzeConfig, images: Images) -> Shown:
    """Held-out images, on which probes may be tested; of unlabelled data without a held-out root
    any, which are more.
    """
    is_whole = not images.whole.classes and not config.data.eval_root
    source = images.whole if is_whole else images.holdout
    sample = draw_sample(source, config.num_images, config.sampling, seed=config.seed)
    if len(sample) < FEWEST:
        raise UserError(
            f"Only {len(sample)} images are there to be shown, and {FEWEST} are the least; raise "
            "--num-images or --data.holdout-ratio, or name others with --data.eval-root."
        )
    shown = Shown(
        source=sample,
        origin="all images" if is_whole else "held-out images",
        sampling=config.sampling or ("stratified" if source.classes else "random"),
        seed=config.seed,
        num_classes=len(source.classes),
    )
    covered = num_classes_of(sample)
    of_classes = f", {covered} of {shown.num_classes} classes" if shown.num_classes else ""
    log.info(
        "%d images are shown (%s, %s%s).", len(sample), shown.origin, shown.sampling, of_classes
    )
    return shown


def measure(
    config: AnalyzeConfig,
    parts: Sequence[str],
    subjects: list[Subject],
    shown: Shown,
    images: Images,
    device: torch.device,
    keep: Callable[[dict[str, Any], list[str]], None],
) -> None:
    """Hand the parts, as plain data by name, and notes to ``keep``, as soon as they are there."""
    notes = [
        f"{subject.name}: {note}"
        for subject in subjects
        for note in seen_images([subject.encoder], images)
    ]
    if "probing" in parts and not images.is_labelled:
        parts = [part for part in parts if part != "probing"]
        notes.append("Blocks were not probed: the images have no labels.")
    for subject in subjects:
        subject.encoder.to(device)
    skipped = SkippedLog(None, images.num_images, config.data.max_bad_ratio)
    in_views = partial(_batches, config, subjects, device, skipped)
    watched = {part: _observers(config, part, subjects, notes) for part in parts}
    grams: dict[str, LayerGrams] = watched.get("similarity", {})
    similar = {pair: MinibatchCka() for pair in _pairs(config, subjects, grams)}
    seen: list[Batch] = []
    for batch in in_views(shown.source) if any(watched.values()) else ():
        for subject in subjects:
            observers = [of[subject.name] for of in watched.values() if subject.name in of]
            watch(subject.encoder, batch.images, observers)
        of_batch = {name: observer.take() for name, observer in grams.items()}
        for (first, second), cka in similar.items():
            if len(batch.keys) >= FEWEST:  # the last batch may be a few bad images short of it
                cka.update(of_batch[first], of_batch[second])
        seen.append(without_pixels(batch))
    keep(_results(watched, similar, notes), notes)
    if watched.get("probing"):
        train = draw_sample(images.train, config.num_train, seed=config.seed)
        probed = _probe(config, subjects, watched["probing"], seen, in_views(train), device)
        keep({"probing": probed}, [])
    if skipped.reasons:
        keep({}, [skipped.summary()])


def _results(
    watched: dict[str, dict[str, Any]],
    similar: dict[tuple[str, str], MinibatchCka],
    notes: list[str],
) -> dict[str, Any]:
    """Similarity and attention as plain data; what could not be compared goes to the notes."""
    found: dict[str, Any] = {}
    if "similarity" in watched:
        found["similarity"] = [
            {"first": first, "second": second, **cka.result().plain()}
            for (first, second), cka in similar.items()
        ]
        for pair in found["similarity"]:
            notes += [f"{pair['first']} and {pair['second']}: {why}" for why in pair["reasons"]]
    if "attention" in watched:
        found["attention"] = {
            name: observer.result().plain() for name, observer in watched["attention"].items()
        }
    return found


def _batches(
    config: AnalyzeConfig,
    subjects: list[Subject],
    device: torch.device,
    skipped: SkippedLog,
    source: Source,
) -> Iterator[Batch]:
    """All images of a source, in the largest size that any of the networks wants, in about equal
    batches, with a line of progress now and then."""
    num_batches = max(1, len(source) // config.embed.batch_size)
    size = -(-len(source) // num_batches)
    batches = eval_batches(
        source, data=config.data, crop_ratio=config.embed.crop_ratio, batch_size=size,
        img_size=max(max(subject.encoder.facts.img_size) for subject in subjects),
        device=device, skipped=skipped,
    )  # fmt: skip
    for number, batch in enumerate(batches, 1):
        yield batch
        if number % max(1, num_batches // 5) == 0:
            log.info("%d of %d images.", min(number * size, len(source)), len(source))


def _observers(
    config: AnalyzeConfig, part: str, subjects: list[Subject], notes: list[str]
) -> dict[str, Any]:
    """An observer for every network that offers what a part needs; a note on every other."""
    found: dict[str, Observer] = {}
    for subject in subjects:
        try:
            found[subject.name] = _observer(config, part, subject.encoder)
        except UserError as error:
            notes.append(f"{subject.name}: {error}")
    return found


def _observer(config: AnalyzeConfig, part: str, encoder: Encoder) -> Observer:
    if part == "similarity":
        return LayerGrams(encoder, is_pooled=config.pooled_similarity)
    if part == "attention":
        return AttentionObserver(encoder, cell_px=config.cell_px)
    return BlockPools(encoder, pool=config.embed.pool)


def _pairs(
    config: AnalyzeConfig, subjects: list[Subject], usable: dict[str, Any]
) -> list[tuple[str, str]]:
    """Whose layers are compared: all with the reference, or every pair, itself included."""
    names = [subject.name for subject in subjects if subject.name in usable]
    if config.reference is None:
        return [(one, other) for i, one in enumerate(names) for other in names[i:]]
    (reference,) = (each.name for each in subjects if each.source == config.reference)
    return [(name, reference) for name in names if reference in names]


def _probe(
    config: AnalyzeConfig,
    subjects: list[Subject],
    of_test: dict[str, BlockPools],
    seen: list[Batch],
    train: Iterator[Batch],
    device: torch.device,
) -> dict[str, Any]:
    """Scores of every block by network and probe, as plain data."""
    of_train = _observers(config, "probing", subjects, [])
    read = []
    for batch in train:
        for subject in subjects:
            if subject.name in of_train:
                watch(subject.encoder, batch.images, [of_train[subject.name]])
        read.append(without_pixels(batch))
    found = {}
    for name, observer in of_test.items():
        log.info("%s: probing %d blocks.", name, len(observer.taps))
        scores = probe_blocks(
            of_train[name].embeddings(read), observer.embeddings(seen), device=device
        )
        found[name] = {probe: [each[probe].plain() for each in scores] for probe in scores[0]}
    return found
