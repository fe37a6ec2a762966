"""What each kind of network is shown of images, what it says of them, and how that is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.data.decode import decode_image
from limbeck.data.folder import read_image
from limbeck.data.formats import open_image
from limbeck.data.scenes.objects.views import fitted_image
from limbeck.data.scenes.raster import decode_runs, encode_runs, fill_runs, whole_mask
from limbeck.data.source import BadImage, Source
from limbeck.data.view_makers import MakeView
from limbeck.engine.machine import Precision
from limbeck.evaluation.answers import (
    SMALLEST,
    Gallery,
    class_names,
    draw_bars,
    draw_neighbours,
    fitted,
    likeliest,
)
from limbeck.evaluation.embed import embed, show
from limbeck.evaluation.options import MapOptions
from limbeck.evaluation.overlay import draw_boxes, draw_map, index_image, palette
from limbeck.evaluation.sliding import predict_map
from limbeck.files import is_inside, write_whole
from limbeck.methods.teacher import autocast
from limbeck.models.dense.detector import Detector
from limbeck.models.dense.segmenter import Segmenter
from limbeck.models.encoder import Encoder
from limbeck.ops.paste import paste
from limbeck.recipes.run.boxes import on_image
from limbeck.records import Batch, Detections, Tap

THUMBNAILS = 256  # of a gallery, that are kept
HEADS = (
    ("classes", Tap("logits")),
    ("of_class_head", Tap("class_logits")),
    ("of_distilled_head", Tap("dist_logits")),
)
"""Of a line, and what it tells the likeliest classes of."""


class Sample(NamedTuple):
    """An image on its way to a network.

    ``line`` says which it is, ``crop`` (3, S, S) uint8 is what is shown to all but segmenters and
    detectors, ``pixels`` (H, W, 3) uint8 what these see or what is drawn into. Without either it
    could not be read, for a ``reason``.
    """

    line: dict[str, Any]
    crop: Tensor | None = None
    pixels: Tensor | None = None
    reason: str = ""


@dataclass(frozen=True)
class Samples(Dataset[Sample]):
    """Makes a sample of each image of a source; ``make`` None is for segmenters and detectors."""

    source: Source
    max_image_pixels: int
    make: MakeView | None
    is_drawn: bool

    def __getitem__(self, index: int) -> Sample:
        line = {"image": self.source.key(index)}
        try:
            data = self.source.read(index).data
            return self.of(line, decode_image(data, self.max_image_pixels), self.is_drawn)
        except BadImage as error:
            return Sample(line, reason=str(error))

    def of(self, line: dict[str, Any], pixels: np.ndarray, is_drawn: bool) -> Sample:
        """Of pixels (H, W, 3) uint8."""
        if self.make is None:
            return Sample(line, pixels=torch.from_numpy(pixels))
        crop = self.make(pixels, 0).student
        return Sample(line, crop, torch.from_numpy(np.array(fitted(pixels))) if is_drawn else None)


@dataclass
class Classes:
    """The likeliest classes of a classifier; of two heads their mean's, and those of each."""

    network: Encoder
    precision: Precision
    count: int
    batch_size: int

    def say(self, samples: list[Sample]) -> Iterator[dict[str, Any]]:
        """What is said of each, as it stands in its line."""
        facts, heads = self.network.facts, HEADS if self.network.facts.has_dist_head else HEADS[:1]
        taps = tuple(tap for _, tap in heads)
        said = show(self.network, _batch(samples, self.network).images, taps, self.precision).taps
        found = [likeliest(said[tap].float(), class_names(facts), self.count) for tap in taps]
        names = [name for name, _ in heads]
        return (dict(zip(names, each, strict=True)) for each in zip(*found, strict=True))

    def draw(self, pixels: np.ndarray, line: dict[str, Any]) -> Image.Image:
        """A picture of what a line says of an image."""
        return draw_bars(pixels, line["classes"])


@dataclass
class Neighbours:
    """The nearest images of a gallery, by an encoder's vectors."""

    network: Encoder
    precision: Precision
    count: int
    batch_size: int
    pool: Any
    source: Source
    gallery: Gallery
    digest: str
    max_image_pixels: int

    def __post_init__(self) -> None:
        self.places = {self.source.key(index): index for index in range(len(self.source))}
        self.thumbnail = lru_cache(THUMBNAILS)(self._thumbnail)

    def say(self, samples: list[Sample]) -> Iterator[dict[str, Any]]:
        """See ``Classes``."""
        batch = _batch(samples, self.network)
        said = embed(self.network, [batch], pool=self.pool, precision=self.precision)
        found = self.gallery.nearest(said.features, self.count)
        return ({"neighbours": each, "gallery": self.digest} for each in found)

    def draw(self, pixels: np.ndarray, line: dict[str, Any]) -> Image.Image:
        """See ``Classes``."""
        near = line["neighbours"].items()
        return draw_neighbours(pixels, [(key, own, self.thumbnail(key)) for key, own in near])

    def _thumbnail(self, key: str) -> np.ndarray | None:
        try:
            data = self.source.read(self.places[key]).data
            return np.array(fitted(decode_image(data, self.max_image_pixels), 1, SMALLEST))
        except BadImage:
            return None


@dataclass
class Maps:
    """The class of each pixel by a segmenter, as masks below ``out``."""

    network: Segmenter
    precision: Precision
    options: MapOptions
    opacity: float
    out: Path
    name_of: Names
    batch_size = 1

    def __post_init__(self) -> None:
        self.names = class_names(self.network.facts)
        self.colors = palette(len(self.names))

    def say(self, samples: list[Sample]) -> Iterator[dict[str, Any]]:
        """See ``Classes``."""
        for sample in samples:
            assert sample.pixels is not None
            image = sample.pixels.permute(2, 0, 1)
            found = predict_map(self.network, image, self.options, self.precision)
            mask = f"masks/{self.name_of(sample.line)}"
            save_png(index_image(found, self.colors), self.out / mask)
            counts = torch.bincount(found.flatten().long(), minlength=len(self.names))
            shares = zip(self.names, (counts / found.numel()).tolist(), strict=True)
            kept = {name: share for name, share in shares if share}
            yield {"mask": mask, "size": [found.shape[1], found.shape[0]], "shares": kept}

    def draw(self, pixels: np.ndarray, line: dict[str, Any]) -> Image.Image:
        """See ``Classes``."""
        mask = open_image(read_image(self.out / line["mask"]))
        found = torch.from_numpy(np.array(mask))
        room = line.get("num_named", 0)
        return draw_map(pixels, found, self.colors, self.names, self.opacity, room)


@dataclass
class Boxes:
    """The objects that a detector finds, surer than a threshold."""

    network: Detector
    precision: Precision
    threshold: float
    opacity: float
    batch_size = 8

    def __post_init__(self) -> None:
        self.names = class_names(self.network.facts)
        self.colors = dict(zip(self.names, palette(len(self.names)), strict=True))

    def say(self, samples: list[Sample]) -> Iterator[dict[str, Any]]:
        """See ``Classes``."""
        side = self.network.facts.img_size[0]
        pixels = [sample.pixels.numpy() for sample in samples if sample.pixels is not None]
        shown = [fitted_image(each, side) for each in pixels]
        device = self.network.backbone.mean.device
        images = torch.stack([image for image, _ in shown]).to(device).float().div_(255)
        with autocast(device, self.precision):
            said = self.network.detect(images, [size for _, size in shown])
        for each, answers, (_, size) in zip(pixels, said, shown, strict=True):
            own = (each.shape[0], each.shape[1])
            found = [*self._sure(on_image(answers, size, own), own)]
            counts = Counter(one["class"] for one in found)
            yield {"boxes": found, "size": [own[1], own[0]], "counts": dict(counts.most_common())}

    def _sure(self, found: Detections, own: tuple[int, int]) -> Iterator[dict[str, Any]]:
        for place in torch.nonzero(found.scores >= self.threshold).flatten().tolist():
            left, top, right, bottom = found.boxes[place].tolist()
            line = {
                "class": self.names[int(found.classes[place])],
                "score": float(found.scores[place]),
                "box": [left, top, right - left, bottom - top],
            }
            if found.masks is not None:
                is_inside = paste(found.masks[place].float().cpu(), found.boxes[place].cpu(), own)
                line["mask"] = {"size": list(own), "counts": encode_runs(is_inside.numpy())}
            yield line

    def draw(self, pixels: np.ndarray, line: dict[str, Any]) -> Image.Image:
        """See ``Classes``."""
        masks = [each["mask"] for each in line["boxes"] if "mask" in each]
        runs = [decode_runs(each["counts"]) for each in masks]
        drawn = [
            whole_mask(fill_runs(own, *each["size"]), each["size"])
            for own, each in zip(runs, masks, strict=True)
        ]
        return draw_boxes(pixels, line["boxes"], self.colors, self.opacity, drawn)


class Names:
    """A file name for each image, below a folder: without the suffix where that is enough."""

    def __init__(self, keys: list[str]) -> None:
        self.keys, self.stems = keys, Counter(map(_stem, keys))
        self.names = Counter(map(self._readable, keys))

    def __call__(self, line: dict[str, Any]) -> str:
        """Of the image, or the frame, of a line."""
        key = line["image"]
        if "frame" in line:
            return f"{key}/{line['frame']:06d}.png"
        name = self._readable(key)
        if not is_inside(key) or self.names[name] > 1:  # in a table or a shard it may be anything
            return f"{blake2b(key.encode(errors='replace'), digest_size=16).hexdigest()}.png"
        return name

    def _readable(self, key: str) -> str:
        return f"{_stem(key) if self.stems[_stem(key)] == 1 else key}.png"


def _stem(key: str) -> str:
    return key.rpartition(".")[0] if PurePosixPath(key).suffix else key


def save_png(image: Image.Image, file: Path) -> None:
    """Whole or not at all, with the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda target: image.save(target, "PNG", compress_level=1))


def _batch(samples: list[Sample], network: Encoder) -> Batch:
    device = next(network.parameters()).device
    crops = torch.stack([sample.crop for sample in samples if sample.crop is not None])
    images = crops.to(device).float().div_(255)
    keys = tuple(sample.line["image"] for sample in samples)
    return Batch(images, images, None, keys, torch.zeros(len(keys), dtype=torch.int64))
