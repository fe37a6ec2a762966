"""The images on which an export is proven: the user's own, as the network was shown them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from limbeck.config import from_plain
from limbeck.data.classes import match_classes
from limbeck.data.open import open_source
from limbeck.data.options import DataOptions
from limbeck.data.scenes.loader import eval_scenes
from limbeck.data.scenes.objects.loader import eval_objects
from limbeck.data.scenes.objects.open import open_objects, with_object_classes
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.data.scenes.objects.source import (
    Annotated,
    ObjectSource,
    ObjectSubset,
    WithoutObjects,
)
from limbeck.data.scenes.open import open_scenes, with_classes
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.scene import Scenes, SceneSubset
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import Source, Subset
from limbeck.data.views import IMAGENET_MEAN_BYTES
from limbeck.errors import UserError
from limbeck.evaluation.average_precision import AveragePrecision
from limbeck.evaluation.miou import Confusion
from limbeck.evaluation.options import MapOptions
from limbeck.exports.thresholds import best_temperature, best_threshold, f1_at
from limbeck.models.dense.detector import Detector
from limbeck.models.dense.headed import Headed
from limbeck.models.dense.segmenter import Segmenter
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import Savable, read_record
from limbeck.ops.resize import resize_images
from limbeck.recipes.look.evaluate_boxes import objects_of
from limbeck.recipes.look.evaluate_maps import scenes_of
from limbeck.recipes.run.boxes import on_image
from limbeck.recipes.run.images import Images, open_images
from limbeck.recipes.run.objects import open_object_images
from limbeck.recipes.run.options import CropEvalOptions
from limbeck.recipes.run.probes import centre_crops
from limbeck.recipes.run.scenes import open_scene_images
from limbeck.recipes.ship.options import ShownMapOptions
from limbeck.recipes.ship.places import open_files
from limbeck.records import Batch, Detections, Objects

log = logging.getLogger("limbeck")

BATCH = 8
CPU = torch.device("cpu")
Size = tuple[int, int]


def open_shown(network: Savable, data: DataOptions) -> tuple[Source, Source | None, DataOptions]:
    """The named images, or else those that the network's run has held out, and how to read them.

    Between them those that the run was trained on, None of named ones and where none were held out.
    Raises UserError where they are neither named nor there any more, or of other classes.
    """
    own = network.facts.origin.get("config", {}).get("data", {})
    classes = tuple(network.facts.origin.get("classes", ()))
    if data.root and isinstance(network, Headed):
        try:
            if isinstance(network, Segmenter):
                scenes = open_scenes(data.root, scenes_of(data, own))
                return with_classes(scenes, classes, data.root, "the segmenter"), None, data
            objects = open_objects(data.root, objects_of(data, own))
            return with_object_classes(objects, classes, data.root, "the detector"), None, data
        except UserError as error:
            log.info("Images alone are taken, and nothing is scored: %s", error)
            return open_files((data.root,)), None, data
    if data.root:
        source = open_source(data.root, data, data.split)
        is_other = source.classes and classes
        if is_other:
            source = match_classes(source, classes, data.root, "the run")
        return source, None, data
    kind, opened = DATA.get(network.facts.architecture["kind"], (DataOptions, open_images))
    names = {each.name for each in fields(kind)}
    read = from_plain(kind, {k: v for k, v in own.items() if k in names}, "the run's data")
    if not read.root:
        raise UserError("The run does not say which images it was of; name some with --data.")
    is_path = "://" not in read.root and not read.root.startswith("hf:")
    if is_path and not set(read.root) & set("{*?[") and not Path(read.root).exists():
        raise UserError(f"The images of the run, {read.root}, are gone; name some with --data.")
    images = opened(read)
    if not len(images.holdout):
        log.info("The run has held no images out: shown are some that it was trained on.")
        return images.train, None, read
    return images.holdout, images.train, read


def parted(source: Source, others: Source | None, count: int) -> tuple[Source, Source]:
    """At most ``count`` images for the proof, evenly spread, and others, of which none is there."""
    if others is not None:
        return source, others
    count = min(count, len(source) // 2)
    places = {index * len(source) // count for index in range(count)}
    rest = [index for index in range(len(source)) if index not in places]
    return _some(source, sorted(places)), _some(source, rest)


def _some(source: Source, places: list[int]) -> Source:
    if isinstance(source, Scenes):
        return SceneSubset(source, places)
    return (
        ObjectSubset(source, places) if isinstance(source, ObjectSource) else Subset(source, places)
    )


class Shown:
    """At most ``count`` images of a source, evenly spread, as the network sees them.

    ``place``, ``seen_in_training``: where they are from, to be told.
    """

    def __init__(
        self, network: Savable, source: Source, data: DataOptions, count: int, crop_ratio: float,
        *, place: str = "", seen_in_training: bool = False,
    ) -> None:  # fmt: skip
        self.network, self.data, self.crop_ratio = network, data, crop_ratio
        self.place, self.seen_in_training = place, seen_in_training
        count = min(count, len(source))
        self.source = _some(source, [index * len(source) // count for index in range(count)])

    def batches(self, size: Size) -> Iterator[Batch]:
        """All that can be read, resized if need be, every value a pixel's; labels where known.

        Raises UserError where none can be read.
        """
        skipped = SkippedLog(None, len(self.source), 1.0)
        shown = CropEvalOptions(crop_ratio=self.crop_ratio, batch_size=BATCH)
        found = 0
        if isinstance(self.network, Detector):
            batches = self._fitted(skipped)
        elif isinstance(self.network, Segmenter):
            whole = eval_scenes(self.source, data=self.data, device=CPU, skipped=skipped)
            batches = (_middle(batch, self.network.facts.img_size) for batch in whole)
        else:
            batches = centre_crops(self.network, self.source, shown, self.data, CPU, skipped)
        for batch in batches:
            found += 1
            images = (255 * resize_images(batch.images, size)).round() / 255
            labels = batch.labels if self.network.facts.num_classes else None
            yield replace(batch, images=images, labels=labels)
        if not found:
            raise UserError("Not one of the images can be read; name others with --data.")

    def _fitted(self, skipped: SkippedLog) -> Iterator[Batch]:
        """Whole images in squares, with their objects where there are any."""
        source = self.source
        has_objects = isinstance(source, ObjectSource)
        if not has_objects:
            source = WithoutObjects(source, self.data.max_image_pixels)
        for batch, shown in eval_objects(
            source, data=self.data, img_size=self.network.facts.img_size[0], batch_size=BATCH,
            device=CPU, skipped=skipped,
        ):  # fmt: skip
            objects = tuple(
                Objects(
                    torch.from_numpy(each.truth.boxes * _factors(each.own_size, each.size)).float(),
                    torch.from_numpy(each.truth.classes),
                    each.size,
                )
                for each in shown
                if not each.truth.is_crowd.any()
            )
            is_scored = has_objects and len(objects) == len(shown)
            yield replace(batch, objects=objects if is_scored else None)


def _middle(batch: Batch, size: Size) -> Batch:
    """The middle of an image and its label map, whose shorter side is made a window's."""
    own = batch.images.shape[-2:]
    scale = max(side / there for side, there in zip(size, own, strict=True))
    wide = [max(side, round(there * scale)) for side, there in zip(size, own, strict=True)]
    top, left = ((there - side) // 2 for side, there in zip(size, wide, strict=True))
    inside = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    images = F.interpolate(batch.images, wide, mode="bilinear", antialias=True)[inside]
    labels = batch.labels
    if labels is not None:
        nearest = F.interpolate(labels[:, None].float(), wide, mode="nearest-exact")
        labels = nearest[:, 0].long()[inside]
    return replace(batch, images=images, labels=labels)


def own_crop_ratio(network: Savable) -> float:
    """Of the centre crop with which the network's run was scored."""
    record = read_record(network.facts.origin["source"])[1]
    ratio: float = record["preprocessing"]["crop_ratio"]
    return ratio


def own_maps(network: Segmenter, asked: ShownMapOptions) -> MapOptions:
    """How a segmenter's run was scored, but for what is asked for; which is told."""
    own = network.facts.origin.get("config", {}).get("evaluation", {})
    given = {name: value for name, value in vars(asked).items() if value is not None}
    if given.get("mode") == "whole":
        own = {k: v for k, v in own.items() if k not in ("stride", "window_batch")}
    maps = from_plain(MapOptions, own | given, "the run's evaluation")
    told = {name: value for name, value in vars(maps).items() if value != vars(MapOptions())[name]}
    if told:
        words = ", ".join(f"{name} {value}" for name, value in told.items())
        log.info("Images are shown as the run was scored, or as --maps says: %s.", words)
    return maps


def preprocessing_of(facts: EncoderFacts, crop_ratio: float) -> dict[str, Any]:
    """What is done to an image before the network sees it, in plain data."""
    height, width = facts.img_size
    common = {"size": [height, width], "mean": list(facts.mean), "std": list(facts.std)}
    if facts.has_boxes:
        words = (
            f"RGB, upright; resized to fit into {height} x {width} pixels (bilinear, antialiased), "
            "at the top left; the rest is of the colour 'fill'. Boxes are left, top, right and "
            "bottom in these pixels: divide them by the factor of the resize"
        )
        fill = list(IMAGENET_MEAN_BYTES)
        return common | {"words": words, "interpolation": "bilinear", "fill": fill}
    if facts.has_maps:
        words = (
            f"RGB, upright; windows of {height} x {width} pixels of the image, whose shorter side "
            "is first made a window's (bilinear)"
        )
        return common | {"words": words, "interpolation": "bilinear"}
    shorter = math.floor(height / crop_ratio)
    words = (
        f"RGB, upright; the shorter side resized to {shorter} pixels (bicubic, antialiased), then "
        f"the centre of {height} x {height} cropped"
    )
    return common | {"words": words, "interpolation": "bicubic", "shorter_side": shorter}


def _factors(old: Size, new: Size) -> list[float]:
    return [new[axis] / old[axis] for axis in (1, 0, 1, 0)]


DATA: dict[str, tuple[Any, Callable[[Any], Images]]] = {
    "segmenter": (SceneOptions, open_scene_images),
    "detector": (ObjectOptions, open_object_images),
}
"""Options of the images of a run, by the kind of its network, and what opens them."""


class Scorer:
    """The task's score by both, where images have labels: top-1, or mIoU of a segmenter."""

    def __init__(self, facts: EncoderFacts) -> None:
        self.has_maps, self.num_images = facts.has_maps, 0
        self.logits: list[list[np.ndarray]] = [[], []]
        self.labels: list[np.ndarray] = []
        self.counts = [Confusion(facts.num_classes) for _ in range(2)]

    def add(self, batch: Batch, *answers: dict[str, np.ndarray]) -> None:
        """Count what PyTorch and the file say of some images, where these have labels."""
        labels = batch.labels
        if labels is None:
            return
        self.num_images += len(labels)
        self.labels.append(labels.numpy())
        for kept, counted, said in zip(self.logits, self.counts, answers, strict=True):
            kept.extend([] if self.has_maps else [said["logits"]])
            found = said["mask"] if self.has_maps else said["logits"].argmax(1)
            counted.add(torch.from_numpy(found), labels)

    @property
    def step(self) -> float:
        """By how much the score may always change: one image, where there are few."""
        return 0 if self.has_maps else 1 / max(1, self.num_images)

    def plain(self) -> dict[str, Any]:
        """Both scores; empty where nothing had a label."""
        if not self.counts[0].counts.sum():
            return {}
        both = [each.score() for each in self.counts]
        own, file = (each.miou if self.has_maps else each.aacc for each in both)
        name = "mIoU" if self.has_maps else "top-1"
        return {"name": name, "pytorch": own, "file": file, "images": self.num_images}

    def thresholds(self) -> dict[str, Any]:
        """The confidence from which on an answer is best accepted, by both; empty without labels.

        By F1: of the accepted answers those that are right, and of all images those that are
        answered right. "old_f1" is the file's with the threshold of PyTorch; "temperature" is what
        to divide the file's logits by so that its mean confidence is PyTorch's.
        """
        if not self.logits[0]:
            return {}
        labels, (own, file) = np.concatenate(self.labels), map(np.concatenate, self.logits)
        before, after = (best_threshold(each, labels) for each in (own, file))
        return {
            "pytorch": {"threshold": before[0], "f1": before[1]},
            "file": {"threshold": after[0], "f1": after[1]},
            "old_f1": f1_at(file, labels, before[0]),
            "temperature": best_temperature(file, own),
        }

    def failures(self, loss: float) -> list[str]:
        """A sentence where the file has lost more points than ``loss`` and more than a ``step``."""
        said, allowed = self.plain(), max(loss / 100, self.step)
        if not said or said["pytorch"] - said["file"] <= allowed + 1e-9:
            return []
        return [
            f"{said['name']} falls from {100 * said['pytorch']:.2f} to {100 * said['file']:.2f} % "
            f"(tolerance {100 * allowed:.2f} points)"
        ]


class BoxScorer(Scorer):
    """Likewise AP50 of a detector, where images have objects; one object may always change."""

    def __init__(self, facts: EncoderFacts) -> None:
        super().__init__(facts)
        names = [str(index) for index in range(facts.num_classes)]
        self.found = [AveragePrecision(names) for _ in range(2)]
        self.num_objects = 0

    def add(self, batch: Batch, *answers: dict[str, np.ndarray]) -> None:
        """See ``Scorer``."""
        for place, wanted in enumerate(batch.objects or ()):
            self.num_images += 1
            self.num_objects += (count := len(wanted.boxes))
            boxes = wanted.boxes.double().numpy()
            areas, is_crowd = (boxes[:, 2:] - boxes[:, :2]).prod(1), np.zeros(count, bool)
            kinds = wanted.classes.numpy()
            truth = Annotated(boxes, kinds, is_crowd, areas, (None,) * count)
            for kept, said in zip(self.found, answers, strict=True):
                own = (
                    torch.from_numpy(said[each][place]) for each in ("boxes", "scores", "classes")
                )
                kept.add(wanted.size, truth, on_image(Detections(*own), wanted.size, wanted.size))

    @property
    def step(self) -> float:
        """See ``Scorer``."""
        return 1 / max(1, self.num_objects)

    def plain(self) -> dict[str, Any]:
        """See ``Scorer``."""
        if not self.num_objects:
            return {}
        own, file = (each.score().boxes["ap50"] for each in self.found)
        return {"name": "AP50", "pytorch": own, "file": file, "images": self.num_images}

    def thresholds(self) -> dict[str, Any]:
        """Likewise of boxes: by the F1 of all answers, without a temperature."""
        if not self.num_objects:
            return {}
        before, after = (each.score() for each in self.found)
        return {
            "pytorch": {"threshold": before.threshold, "f1": before.f1},
            "file": {"threshold": after.threshold, "f1": after.f1},
            "old_f1": self.found[1].f1_at(before.threshold),
        }


def scorer_of(facts: EncoderFacts) -> Scorer:
    """What scores a network of this kind."""
    return BoxScorer(facts) if facts.has_boxes else Scorer(facts)
