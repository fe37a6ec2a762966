"""The network that answers, in PyTorch or as its exported file: images' bytes to plain data."""

import base64
import io
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from limbeck.data.decode import decode_image
from limbeck.data.open import open_source
from limbeck.data.options import DataOptions
from limbeck.data.scenes.objects.views import fitted_image
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import BadImage
from limbeck.data.views import eval_view
from limbeck.documents import read_json
from limbeck.errors import UserError
from limbeck.evaluation.answers import Gallery, class_names, likeliest
from limbeck.evaluation.attention import attention_maps, has_attention_map
from limbeck.evaluation.embed import show
from limbeck.evaluation.overlay import index_image, palette
from limbeck.evaluation.sliding import predict_map
from limbeck.exports.formats import FORMATS, check_packages, module_of
from limbeck.exports.graph import Graph
from limbeck.exports.torch import runner
from limbeck.files import printable
from limbeck.models.dense.headed import Headed
from limbeck.models.dense.segmenter import Segmenter
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import load_finished
from limbeck.ops.resize import resize_images
from limbeck.recipes.run.boxes import on_image
from limbeck.recipes.run.options import CropEvalOptions
from limbeck.recipes.run.probes import centre_crops
from limbeck.recipes.ship.export import FORMAT, digest_of, record_of
from limbeck.recipes.ship.options import ShownMapOptions
from limbeck.recipes.ship.predict import THRESHOLD
from limbeck.recipes.ship.shown import own_crop_ratio, own_maps
from limbeck.records import Detections, Tap

log = logging.getLogger("limbeck")

CPU = torch.device("cpu")
NUM_DECODERS = 2
"""Images that are decoded at a time, beside the network."""
MOST_CLASSES = 256  # of a PNG of indices
THUMBNAIL = 128  # pixels of a side


@dataclass(frozen=True)
class Asked:
    """An image's bytes, how many classes and neighbours are wanted, and what else."""

    data: bytes
    top: int = 5
    attention: bool = False
    embedding: bool = False


class Network:
    """A finished network; called with what is asked, it gives an answer or a BadImage of each.

    One thread at a time. Raises UserError for a file that is not of these weights.
    """

    def __init__(
        self,
        run: str,
        file: Path | None = None,
        *,
        gallery: str = "",
        maps: ShownMapOptions | None = None,
        threads: int = 1,
        max_pixels: int = 2**25,
    ) -> None:
        self.network: Any = load_finished(run)
        self.facts = self.network.facts
        self.threads, self.max_pixels = threads, max_pixels
        self.names, self.crop_ratio = class_names(self.facts), own_crop_ratio(self.network)
        self.is_dense = isinstance(self.network, Headed)  # answers for whole images
        self.has_attention = not self.is_dense and has_attention_map(self.network)
        self.decoders = ThreadPoolExecutor(NUM_DECODERS, "limbeck-decoder")
        self.gallery: Gallery | None = None
        self.segmenter = self.network
        record = read_export(file, self.facts) if file else None
        self.graph = Graph(self.network, record["input"]["kind"] if record else "float")
        self.run, self.runtime = runner(self.graph, threads), "PyTorch"
        self.threshold = self.facts.origin.get("scores", {}).get("threshold", THRESHOLD)
        if file and record:
            name = next(name for name, each in FORMATS.items() if each.title == record["runtime"])
            check_packages(name)
            self.run = module_of(name).load(file, record, threads)
            self.runtime = f"{record['runtime']}, {record['precision']}"
            self.segmenter = _InFile(self)
            # Its own, where it is known: int8 squeezes confidences.
            of_file = record.get("proof", {}).get("thresholds", {}).get("file", {})
            self.threshold = of_file.get("threshold", self.threshold)
            if shorter := record["preprocessing"].get("shorter_side"):
                # Half a pixel more is cut off again, and no rounding can be.
                self.crop_ratio = self.facts.img_size[0] / (shorter + 0.5)
        self.colors = palette(len(self.names))
        if self.is_dense and gallery:
            kind = self.facts.architecture["kind"]
            raise UserError(f"A {kind} has no vector of an image; leave --gallery out.")
        if isinstance(self.network, Segmenter):
            self.maps = own_maps(self.network, maps or ShownMapOptions())
            if len(self.names) > MOST_CLASSES:
                raise UserError(
                    f"A mask of more than {MOST_CLASSES} classes can't be sent as a PNG."
                )
            if file and self.maps.mode == "whole":
                raise UserError(f"{file} is of one size of window; add --maps.mode slide.")
        if gallery:
            self._open_gallery(gallery)

    def _open_gallery(self, folder: str) -> None:
        data = DataOptions(root=folder)
        self.source = open_source(folder, data, data.split)
        log.info("Looking at the %s images of %s ...", f"{len(self.source):,}", folder)
        shown = CropEvalOptions(crop_ratio=self.crop_ratio)
        skipped = SkippedLog(None, len(self.source), 1.0)
        keys: list[str] = []
        vectors: list[Tensor] = []
        for batch in centre_crops(self.network, self.source, shown, data, CPU, skipped):
            keys += map(printable, batch.keys)  # JSON is UTF-8, an old disk's names need not be
            images = resize_images(batch.images, self.facts.img_size)
            vectors.append(self._vectors(images, self.run(self.graph.feed(images))))
        if not keys:
            raise UserError(f"Not one image of {folder} can be read; name another --gallery.")
        self.gallery = Gallery(keys, torch.cat(vectors))
        self.places = {printable(self.source.key(at)): at for at in range(len(self.source))}

    def __call__(self, asked: Sequence[Asked]) -> list[dict[str, Any] | BadImage]:
        """What is said of each image."""
        torch.set_num_threads(self.threads)  # of this thread
        if self.is_dense:  # one by one: whole images are large
            work = self._boxes if self.facts.has_boxes else self._map
            return [_or_bad(work, each) for each in asked]
        views = list(self.decoders.map(lambda each: _or_bad(self._view, each), asked))
        good = [place for place, view in enumerate(views) if not isinstance(view, BadImage)]
        answers: list[Any] = list(views)
        if good:
            images = torch.stack([views[place][0] for place in good]).float().div_(255)
            images = resize_images(images, self.facts.img_size)
            said = self._say(images, [asked[place] for place in good])
            for place, answer in zip(good, said, strict=True):
                answers[place] = views[place][1] | answer
        return answers

    def _view(self, asked: Asked) -> tuple[Tensor, dict[str, Any]]:
        pixels = decode_image(asked.data, self.max_pixels)
        (height, width), side = pixels.shape[:2], self.facts.img_size[0]
        # Of the image's own pixels what eval_view leaves of a side.
        seen = min(height, width) * side / math.floor(side / self.crop_ratio)
        wide, high = seen / width, seen / height
        told = {
            "width": width,
            "height": height,
            "seen": [(1 - wide) / 2, (1 - high) / 2, wide, high],
        }
        return eval_view(pixels, side, self.crop_ratio), told

    def _say(self, images: Tensor, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """Of images (B, 3, H, W) in 0..1 what each was asked for."""
        said = self.run(self.graph.feed(images))
        count = max(each.top for each in asked)
        answers: list[dict[str, Any]] = [{} for _ in asked]
        if "logits" in said:
            likely = likeliest(torch.from_numpy(said["logits"]), self.names, count)
            for each, answer, shares in zip(asked, answers, likely, strict=True):
                answer["classes"] = dict(list(shares.items())[: each.top])
        if self.gallery or any(each.embedding for each in asked):
            vectors = self._vectors(images, said)
            near = self.gallery.nearest(vectors, count) if self.gallery else None
            for place, (each, answer) in enumerate(zip(asked, answers, strict=True)):
                answer["embedding"] = vectors[place].tolist()
                answer["neighbours"] = near and dict(list(near[place].items())[: each.top])
        looking = [place for place, each in enumerate(asked) if each.attention]
        if looking and self.has_attention:
            maps = attention_maps(self.network, images[looking])
            for place, values in zip(looking, maps, strict=True):
                answers[place]["attention"] = values.tolist()
        return answers

    def _vectors(self, images: Tensor, said: dict[str, Any]) -> Tensor:
        """(B, D): the file's own, or of what gives classes alone the mean of PyTorch's tokens."""
        if "embedding" in said:
            return torch.from_numpy(said["embedding"])
        features = show(self.network, images, (Tap("output"),))
        return features.taps[Tap("output")][:, features.num_prefix_tokens :].mean(1).float()

    def _map(self, asked: Asked) -> dict[str, Any]:
        pixels = decode_image(asked.data, self.max_pixels)
        found = predict_map(self.segmenter, torch.from_numpy(pixels).permute(2, 0, 1), self.maps)
        png = io.BytesIO()
        index_image(found, self.colors).save(png, "PNG")
        counts = torch.bincount(found.flatten().long(), minlength=len(self.names)).tolist()
        there = sorted((place for place, n in enumerate(counts) if n), key=lambda i: -counts[i])
        return {
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "mask": base64.b64encode(png.getvalue()).decode(),
            "shares": {self.names[place]: counts[place] / found.numel() for place in there},
            "colours": {self.names[place]: self._colour(place) for place in there},
        }

    def _boxes(self, asked: Asked) -> dict[str, Any]:
        pixels = decode_image(asked.data, self.max_pixels)
        shown, size = fitted_image(pixels, self.facts.img_size[0])
        said = self.run(self.graph.feed(shown[None].float().div_(255)))
        parts = (torch.from_numpy(said[name][0]) for name in ("boxes", "scores", "classes"))
        found = on_image(Detections(*parts), size, (pixels.shape[0], pixels.shape[1]))
        boxes = []
        for place in torch.nonzero(found.scores >= self.threshold).flatten().tolist():
            left, top, right, bottom = found.boxes[place].tolist()
            name = self.names[int(found.classes[place])]
            box = [left, top, max(0.0, right - left), max(0.0, bottom - top)]
            boxes.append({"class": name, "score": float(found.scores[place]), "box": box})
        there = sorted({int(kind) for kind in found.classes[found.scores >= self.threshold]})
        return {
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "boxes": boxes,
            "colours": {self.names[place]: self._colour(place) for place in there},
        }

    def _colour(self, place: int) -> str:
        return f"#{bytes(self.colors[place]).hex()}"

    def picture(self, name: str) -> bytes | None:
        """A small JPEG of an image of the gallery; None where there is none to be had."""
        if (place := self.places.get(name)) is None:
            return None
        try:
            pixels = decode_image(self.source.read(place).data, self.max_pixels)
        except BadImage:
            return None
        small, file = eval_view(pixels, THUMBNAIL, 1.0).permute(1, 2, 0), io.BytesIO()
        Image.fromarray(small.numpy()).save(file, "JPEG", quality=85)
        return file.getvalue()


class _InFile:
    """A segmenter whose windows a file sees, as ``predict_map`` asks it."""

    def __init__(self, of: Network) -> None:
        self.facts, self.run, self.feed = of.facts, of.run, of.graph.feed
        self.backbone = SimpleNamespace(mean=torch.tensor(of.facts.mean).view(3, 1, 1))

    def __call__(self, windows: Tensor, ids_keep: None, taps: Sequence[Tap]) -> SimpleNamespace:
        said = self.run(self.feed(windows))
        return SimpleNamespace(taps={tap: torch.from_numpy(said[tap.kind]) for tap in taps})


def read_export(file: Path, facts: EncoderFacts) -> Any:
    """The JSON beside an exported file; raises UserError where one of them is not of the other, or
    of other weights than a network's."""
    beside = record_of(file)
    if not beside.is_file():
        raise UserError(f"There is no {beside}; keep it beside {file.name}, as it was written.")
    record = read_json(beside)
    if record.get("unfinished"):
        raise UserError(f"{file} is of an export that was stopped; export it again.")
    if record.get("format") != FORMAT or digest_of(file) != record.get("sha256"):
        raise UserError(f"{file} is not the file that {beside.name} describes; export it again.")
    if record["source"]["weight_hash"] != facts.origin.get("weight_hash"):
        raise UserError(
            f"{file} is of other weights than {facts.origin['source']}; name the run that it was "
            "exported from, or export it again."
        )
    return record


def _or_bad(work: Callable[[Asked], Any], asked: Asked) -> Any:
    """An image that can't be decoded is no error of the others."""
    try:
        return work(asked)
    except BadImage as error:
        return error
