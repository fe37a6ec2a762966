"""The images on which an export is proven: the user's own, as the network was shown them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.config import from_plain
from limbeck.data.classes import match_classes
from limbeck.data.open import open_source
from limbeck.data.options import DataOptions
from limbeck.data.scenes.loader import eval_scenes
from limbeck.data.scenes.open import open_scenes, with_classes
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.scene import Scenes, SceneSubset
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import Source
from limbeck.errors import UserError
from limbeck.evaluation.miou import Confusion
from limbeck.models.dense.segmenter import Segmenter
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import Savable, read_record
from limbeck.ops.resize import resize_images
from limbeck.recipes.look.evaluate_maps import scenes_of
from limbeck.recipes.run.images import open_images
from limbeck.recipes.run.options import CropEvalOptions
from limbeck.recipes.run.probes import centre_crops, spread_slice
from limbeck.recipes.run.scenes import open_scene_images
from limbeck.recipes.ship.predict import open_files

log = logging.getLogger("limbeck")

BATCH = 8
_Seen = tuple[tuple[str, ...], Tensor, Tensor | None]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pixels:
    """Some images: ``pixels`` uint8 (B, 3, H, W); ``labels`` (B,), of maps (B, H, W), or None."""

    keys: tuple[str, ...]
    pixels: Tensor
    labels: Tensor | None


class Shown:
    """At most ``count`` images of a place, evenly spread, as the network sees them."""

    def __init__(
        self,
        network: Savable,
        source: Source,
        place: str,
        data: DataOptions,
        count: int,
        crop_ratio: float,
    ) -> None:
        self.network, self.place, self.data, self.crop_ratio = network, place, data, crop_ratio
        self.source = spread_slice(source, count)
        if isinstance(source, Scenes):
            places = [index * len(source) // count for index in range(min(count, len(source)))]
            self.source = SceneSubset(source, places) if count < len(source) else source

    def batches(self, other_size: tuple[int, int] | None = None) -> Iterator[Pixels]:
        """All that can be read; resized if so. Raises UserError where none can."""
        skipped = SkippedLog(None, len(self.source), 1.0)
        size = other_size or self.network.facts.img_size
        is_none = True
        show = self._scenes if isinstance(self.network, Segmenter) else self._crops
        for keys, images, labels in show(skipped):
            is_none = False
            images = resize_images(images, size)
            yield Pixels(keys, (255 * images).round().to(torch.uint8), labels)
        if is_none:
            raise UserError(f"No image of {self.place} can be read; name others with --data.")

    def _crops(self, skipped: SkippedLog) -> Iterator[_Seen]:
        shown = CropEvalOptions(crop_ratio=self.crop_ratio, batch_size=BATCH)
        for batch in centre_crops(self.network, self.source, shown, self.data, CPU, skipped):
            knows = batch.labels is not None and self.network.facts.num_classes
            yield batch.keys, batch.images, batch.labels if knows else None

    def _scenes(self, skipped: SkippedLog) -> Iterator[_Seen]:
        """The middle of each image, whose shorter side is made a window's."""
        size = self.network.facts.img_size
        for batch in eval_scenes(self.source, data=self.data, device=CPU, skipped=skipped):
            pairs = zip(size, batch.images.shape[-2:], strict=True)
            scale = max(side / own for side, own in pairs)
            wide = tuple(max(side, round(own * scale)) for side, own in zip(
                size, batch.images.shape[-2:], strict=True
            ))  # fmt: skip
            images = F.interpolate(batch.images, wide, mode="bilinear", antialias=True)
            labels = batch.labels
            if labels is not None:
                nearest = F.interpolate(labels[:, None].float(), wide, mode="nearest-exact")
                labels = _centre(nearest[:, 0].long(), size)
            yield batch.keys, _centre(images, size), labels


def _centre(images: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = ((own - side) // 2 for own, side in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def open_shown(network: Savable, data: DataOptions, count: int, crop_ratio: float | None) -> Shown:
    """The named images, or else those that the network's run has held out.

    Raises UserError where they are neither named nor there any more, or not of the same classes.
    """
    is_segmenter = isinstance(network, Segmenter)
    own = network.facts.origin.get("config", {}).get("data", {})
    kind = SceneOptions if is_segmenter else DataOptions
    names = {each.name for each in fields(kind)}
    read = from_plain(kind, {k: v for k, v in own.items() if k in names}, "the run's data")
    ratio = crop_ratio or _crop_ratio(network)
    if not data.root:
        place = read.root
        if not place:
            raise UserError("The run does not say which images it was of; name some with --data.")
        if "://" not in place and not place.startswith("hf:") and not Path(place).exists():
            raise UserError(f"The images of the run, {place}, are gone; name some with --data.")
        opened = open_scene_images(read) if isinstance(read, SceneOptions) else open_images(read)
        source = opened.holdout if len(opened.holdout) else opened.train
        return Shown(network, source, place, read, count, ratio)
    if is_segmenter:
        source = _open_scenes(network, data, own)
    else:
        source = open_source(data.root, data, data.split)
        classes = tuple(network.facts.origin.get("classes", ()))
        if source.classes and classes:
            source = match_classes(source, classes, data.root, "the network")
    return Shown(network, source, data.root, data, count, ratio)


def _open_scenes(network: Segmenter, data: DataOptions, own: dict[str, Any]) -> Source:
    """The scenes of a place, or its images where it has no masks for these classes."""
    classes = tuple(network.facts.origin.get("classes", ()))
    try:
        return with_classes(
            open_scenes(data.root, scenes_of(data, own)), classes, data.root, "the segmenter"
        )
    except UserError as error:
        log.info("Images alone are taken, and nothing is scored: %s", error)
        return open_files((data.root,))


def _crop_ratio(network: Savable) -> float:
    source = network.facts.origin["source"]
    ratio: float = read_record(source)[1]["preprocessing"]["crop_ratio"]
    return ratio


def preprocessing_of(network: Savable, crop_ratio: float | None) -> dict[str, Any]:
    """What is done to an image before the file sees it, and what it has inside, in plain data."""
    facts = network.facts
    size, ratio = list(facts.img_size), crop_ratio or _crop_ratio(network)
    common = {"size": size, "mean": list(facts.mean), "std": list(facts.std)}
    if isinstance(network, Segmenter):
        words = (
            f"RGB, upright; windows of {size[0]} x {size[1]} pixels of the image, whose shorter "
            "side is first made a window's (bilinear)"
        )
        return {"words": words, "interpolation": "bilinear", **common}
    shorter = math.floor(size[0] / ratio)
    words = (
        f"RGB, upright; the shorter side resized to {shorter} pixels (bicubic, antialiased), then "
        f"the centre of {size[0]} x {size[0]} cropped"
    )
    return {"words": words, "shorter_side": shorter, "crop_ratio": ratio,
            "interpolation": "bicubic", **common}  # fmt: skip


class Scorer:
    """The task's score by both, where images have labels: top-1, or mIoU of a segmenter."""

    def __init__(self, facts: EncoderFacts) -> None:
        self.has_maps = facts.has_maps
        self.counts = [Confusion(facts.num_classes) for _ in range(2)]
        self.num_images = 0

    def add(self, *answers: dict[str, np.ndarray], labels: Tensor) -> None:
        """Count what PyTorch and the file say of some images."""
        self.num_images += len(labels)
        for counted, said in zip(self.counts, answers, strict=True):
            found = torch.from_numpy(said["mask"] if self.has_maps else said["logits"].argmax(1))
            for own, truth in zip(found, labels, strict=True):
                counted.add(own[None], truth[None])

    def plain(self) -> dict[str, Any]:
        """Both scores; empty where nothing had a label."""
        if not sum(int(each.counts.sum()) for each in self.counts):
            return {}
        scores = [each.score() for each in self.counts]
        values = [each.miou if self.has_maps else each.aacc for each in scores]
        name = "mIoU" if self.has_maps else "top-1"
        return {"name": name, "pytorch": values[0], "file": values[1], "images": self.num_images}

    def failures(self, loss: float) -> list[str]:
        """A sentence where the file has lost more points than ``loss`` and more than one image."""
        said = self.plain()
        if not said:
            return []
        allowed = max(loss / 100, 0 if self.has_maps else 1 / said["images"])
        if said["pytorch"] - said["file"] <= allowed + 1e-9:
            return []
        return [
            f"{said['name']} falls from {100 * said['pytorch']:.2f} to {100 * said['file']:.2f} % "
            f"(tolerance {100 * allowed:.2f} points)"
        ]
