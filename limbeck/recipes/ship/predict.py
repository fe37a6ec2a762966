"""``limbeck predict``: what a network says of images and videos: lines of JSON, a table, masks,
pictures.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
import tyro

from limbeck.config import PositiveInt, Probability, options, to_plain
from limbeck.data.options import DataOptions
from limbeck.errors import RunError, UserError
from limbeck.evaluation.options import MapOptions
from limbeck.recipes.run import checks
from limbeck.recipes.run.options import CropEvalOptions, EmbedOptions
from limbeck.recipes.ship.box_files import BOX_FILES
from limbeck.recipes.ship.options import ShownMapOptions

if TYPE_CHECKING:
    from limbeck.data.skipped import SkippedLog
    from limbeck.recipes.ship.answering import Boxes, Classes, Maps, Neighbours, Sample, Samples

log = logging.getLogger("limbeck")

LINES_FILE, TABLE_FILE = "predictions.jsonl", "predictions.csv"
ANSWERS = {
    "classes": ("class", "probability"),
    "neighbours": ("nearest", "similarity"),
    "shares": ("class", "share"),
    "counts": ("class", "objects"),
}
"""Where a line has its answer, and what a table calls it."""
NUM_ROWS = 10  # of the table on the screen
THRESHOLD = 0.3  # of a detector whose run has scored none
UNUSED = {
    "segmenter": ("crop", "gallery", "top", "threshold", "boxes"),
    "detector": ("crop", "gallery", "top", "maps"),
    "": ("maps", "opacity", "threshold", "boxes"),
}
"""Options without effect on a kind of network; "" is any other."""


@options
class ShownCropOptions(EmbedOptions):
    """How all other networks are shown an image."""

    crop_ratio: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None  # type: ignore[assignment]
    """Side of the centre crop as a part of the resized image; the run's own if not given."""


@options
class PredictConfig:
    """Show images and videos to a network, and keep what it says of them."""

    network: Annotated[str, tyro.conf.Positional] = ""
    """A run's folder, a weights file, timm:NAME, hf:NAME: a classifier, a segmenter, a detector, or
    with --gallery any encoder."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Images and videos: files, folders of images, or patterns such as 'photos/*.jpg'; tables,
    shards and data sets of the hub as --data of a training takes them."""
    out: Path = Path("predictions")
    """Folder for predictions.jsonl (a line for each image), predictions.csv, pictures/, and of a
    segmenter masks/ (PNGs of class indices in the image's size)."""
    overwrite: bool = False
    """Replace what another network, or other options, have left there."""
    gallery: str = ""
    """Images in a place such as above, of which the nearest are told instead of classes."""
    top: PositiveInt = 5
    """So many classes, or nearest images, are told."""
    every: PositiveInt = 1
    """Of a video each n-th frame."""
    pictures: bool = True
    """Also draw what was found into the images and videos."""
    opacity: Probability = 0.5
    """Of masks that are drawn in."""
    threshold: Probability | None = None
    """Of a detector the score from which on an object is told; if not given that which gave the
    best F1 on the run's held-out images."""
    boxes: tuple[Literal["coco", "yolo"], ...] = ()
    """Also write a detector's objects as COCO's results (detections.json, where image_id is the
    image's name and category_id counts from 1) or as YOLO's text files (labels/)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    data: DataOptions = DataOptions()
    maps: ShownMapOptions = ShownMapOptions()
    crop: ShownCropOptions = ShownCropOptions()


@dataclass(frozen=True)
class Predictions:
    """Where they are, of how many images (or frames), how many images and videos could not be
    read, and a table of the answers, in rows for ``table``."""

    out: Path
    num_images: int
    num_skipped: int
    rows: list[dict[str, Any]]


def check(config: PredictConfig) -> None:
    """All that can be wrong without opening an image or a network; raises UserError."""
    if not config.network or not config.images:
        raise UserError("A network and images are needed; run: limbeck predict RUN IMAGES.")
    if ":" in config.network:
        checks.check_source(config.network, any_model=True)
    else:
        checks.check_path(config.network, "limbeck predict")
    for place in (*config.images, *([config.gallery] if config.gallery else [])):
        if "://" not in place and not place.startswith("hf:") and not set(place) & set("{*?["):
            checks.check_path(place, "limbeck predict")
    names = ["root", "eval_root", "eval_split", "holdout_ratio", "max_holdout", "max_bad_ratio"]
    names += ["label_fraction", "label_seed", "label_column"]
    checks.check_unset(config.data, names, "here: all images are shown", "--data.")


def predict(config: PredictConfig) -> Predictions:
    """Predict all images, or those that are left where it was stopped.

    Raises UserError for bad input and for a folder with something else, RunError where nothing
    can be read.
    """
    check(config)
    from limbeck.data.skipped import SkippedLog
    from limbeck.data.view_makers import eval_maker
    from limbeck.documents import to_json
    from limbeck.engine.checkpoint import open_run
    from limbeck.engine.distributed import ranks_session
    from limbeck.evaluation.answers import class_names
    from limbeck.files import write_text
    from limbeck.models.origins.load import load_encoder
    from limbeck.recipes.run.progress import tracked
    from limbeck.recipes.ship.answering import Boxes, Maps, Names, Samples, save_png
    from limbeck.recipes.ship.places import open_places

    checks.check_one_process("predict is one process")
    with ranks_session(config.device) as ranks:
        network = load_encoder(config.network).to(ranks.device).eval()
        config = _resolved(config, network)
        source, videos, root = open_places(config.images, config.data)
        if not videos:
            checks.check_unset(config, ("every",), "without a video")
        plain = to_plain(config)
        kept = {name: plain[name] for name in plain if name not in ("images", "device")}
        del kept["crop"]["batch_size"]
        run = open_run(
            config.out,
            {"verb": "predict", **kept},
            # Images go by their names below it: of another folder they would be taken for these.
            {"student": network.facts.origin.get("weight_hash"), "folder": root},
            overwrite=config.overwrite,
        )
        name_of = Names([*(source.key(index) for index in range(len(source))), *videos])
        kind, digest = _answerer(config, network, name_of, run.dir)
        lines, pictures = run.dir / LINES_FILE, run.dir / "pictures"
        old = [line for line in _read(lines) if line.get("gallery") == digest]
        write_text(lines, "".join(to_json(line, indent=None) + "\n" for line in old))
        (run.dir / "skipped.jsonl").unlink(missing_ok=True)  # all of them are tried again
        skipped = SkippedLog(run.dir / "skipped.jsonl", len(name_of.keys), 1.0)
        is_whole, limit = isinstance(kind, Boxes | Maps), config.data.max_image_pixels
        make = (
            None if is_whole else eval_maker(network.facts.img_size[0], config.crop.crop_ratio or 1)
        )
        samples = Samples(source, limit, make, config.pictures)
        total, shown = _shown(config, samples, videos, old, skipped, pictures)
        with (
            lines.open("a", encoding="utf-8") as file,
            closing(tracked(shown, total, "images")) as left,
        ):
            while batch := list(islice(left, kind.batch_size)):
                for sample, said in zip(batch, kind.say(batch), strict=True):
                    line = sample.line | said
                    if config.pictures and sample.pixels is not None and "frame" not in line:
                        picture = kind.draw(sample.pixels.numpy(), line)
                        save_png(picture, pictures / name_of(line))
                    file.write(to_json(line, indent=None) + "\n")
                    file.flush()
        for key, video in videos.items() if config.pictures else ():
            of_video = (line for line in _read(lines) if line["image"] == key)
            _draw_video(kind, video, pictures / f"{key}.mp4", of_video, config.every, limit)
        number, rows = _write_table(lines, run.dir / TABLE_FILE)
        for form in config.boxes:
            BOX_FILES[form](_read(lines), run.dir, class_names(network.facts), name_of)
        if not number:
            raise RunError(f"No image can be read; {run.dir / 'skipped.jsonl'} says why.")
        run.finish()
    return Predictions(run.dir, number, len(skipped.reasons), rows)


def _resolved(config: PredictConfig, network: Any) -> PredictConfig:
    """With the run's own way of showing images where none is given, which is told."""
    from limbeck.models.finished import is_finished_student, read_record
    from limbeck.recipes.ship.shown import own_maps

    kind = network.facts.architecture["kind"]
    checks.check_unset(config, UNUSED.get(kind, UNUSED[""]), f"on {config.network}")
    if not config.gallery:
        checks.check_unset(config.crop, ("pool",), "without --gallery", "crop.")
    if not (network.facts.num_classes or config.gallery):
        raise UserError(
            f"{config.network} knows no classes; name a folder of which the nearest images are to "
            "be told, --gallery FOLDER, or a run of limbeck segment or finetune."
        )
    if config.gallery and "output" not in network.offered_taps():
        raise UserError(f"{config.network} has no vector of an image; leave --gallery out.")
    if kind == "detector":
        best = network.facts.origin.get("scores", {}).get("threshold", THRESHOLD)
        return replace(config, threshold=best if config.threshold is None else config.threshold)
    if kind != "segmenter":
        ratio = config.crop.crop_ratio
        if ratio is None and is_finished_student(config.network):
            ratio = read_record(config.network)[1]["preprocessing"]["crop_ratio"]
        ratio = ratio or CropEvalOptions().crop_ratio
        return replace(config, crop=replace(config.crop, crop_ratio=ratio))
    return replace(config, maps=ShownMapOptions(**vars(own_maps(network, config.maps))))


def _answerer(
    config: PredictConfig, network: Any, name_of: Any, out: Path
) -> tuple[Boxes | Classes | Neighbours | Maps, str | None]:
    """What answers, and the digest of its gallery."""
    from limbeck.models.dense.detector import Detector
    from limbeck.models.dense.segmenter import Segmenter
    from limbeck.recipes.ship.answering import Boxes, Classes, Maps, Neighbours
    from limbeck.recipes.ship.gallery import open_gallery
    from limbeck.recipes.ship.places import open_files

    if isinstance(network, Detector):
        assert config.threshold is not None
        return Boxes(network, config.precision, config.threshold, config.opacity), None
    if isinstance(network, Segmenter):
        maps = MapOptions(**vars(config.maps))
        return Maps(network, config.precision, maps, config.opacity, out, name_of), None
    if not config.gallery:
        return Classes(network, config.precision, config.top, config.crop.batch_size), None
    source = open_files((config.gallery,), config.data)
    shown = EmbedOptions(**vars(config.crop))
    gallery, digest = open_gallery(
        network, source, shown, config.data, config.precision, out / "gallery"
    )
    return Neighbours(
        network, config.precision, config.top, config.crop.batch_size, shown.pool, source, gallery,
        digest=digest, max_image_pixels=config.data.max_image_pixels,
    ), digest  # fmt: skip


def _shown(
    config: PredictConfig, samples: Samples, videos: dict[str, Path], old: list[dict[str, Any]],
    skipped: SkippedLog, pictures: Path,
) -> tuple[int, Iterator[Sample]]:  # fmt: skip
    """What is left of images and frames: about how many, and each that can be read."""
    from limbeck.data.loader import workers_for
    from limbeck.data.source import BadImage
    from limbeck.data.video import count_frames, read_frames
    from limbeck.data.workers import run_workers

    done = {line["image"]: line.get("frame", 0) + 1 for line in old}  # frames are in order
    source, limit = samples.source, samples.max_image_pixels
    left = [index for index in range(len(source)) if source.key(index) not in done]
    num_workers = min(workers_for(config.data, 1), len(left) - 1)

    def images() -> Iterator[Sample]:
        for sample in run_workers(samples, left, num_workers) if left else ():
            if sample.reason:
                skipped.add([(sample.line["image"], sample.reason)])
            else:
                yield sample

    def frames(key: str) -> Iterator[Sample]:
        try:
            for frame in read_frames(videos[key], config.every, limit, done.get(key, 0)):
                (pictures / f"{key}.mp4").unlink(missing_ok=True)  # it is drawn anew
                line = {"image": key, "frame": frame.number, "seconds": frame.seconds}
                yield samples.of(line, frame.pixels, False)
        except BadImage as error:
            skipped.add([(key, str(error))])

    counts = [max(0, count_frames(file) - done.get(key, 0)) for key, file in videos.items()]
    total = len(left) + sum(-(-count // config.every) for count in counts)
    return total, chain(images(), *map(frames, videos))


def _draw_video(
    kind: Any, video: Path, file: Path, lines: Iterator[dict[str, Any]], every: int, limit: int
) -> None:
    """Write what was answered into a copy of the video, where that is not there yet."""
    from limbeck.data.source import BadImage
    from limbeck.data.video import read_frames, write_video
    from limbeck.recipes.run.progress import tracked

    said = {} if file.exists() else {line["frame"]: line for line in lines}
    if not said:
        return
    legend = {"num_named": max(len(line.get("shares", ())) for line in said.values())}

    def pictures() -> Iterator[tuple[float, Any]]:
        with suppress(BadImage):  # told before, and what came before it is there
            for frame in tracked(read_frames(video, every, limit), len(said), "drawing"):
                if frame.number in said:
                    yield frame.seconds, kind.draw(frame.pixels, said[frame.number] | legend)

    write_video(file, pictures())


def _read(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines, one by one; what a kill has left of one is predicted again."""
    from limbeck.documents import parse_json

    if not file.exists():
        return
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield parse_json(line, dict[str, Any], LINES_FILE)


def _write_table(lines: Path, file: Path) -> tuple[int, list[dict[str, Any]]]:
    """Write the lines as CSV; how many there are, and what was found the most, in rows."""
    from limbeck.files import write_whole

    number, longest, present = 0, 0, set[str]()
    counts, sums = Counter[str](), Counter[str]()
    for line in _read(lines):
        field = next(field for field in ANSWERS if field in line)
        number, longest = number + 1, max(longest, len(line[field]))
        present |= line.keys()
        # Of one class, or image, to each only the first counts; of maps and boxes all of them.
        is_all = field in ("shares", "counts")
        for name, value in list(line[field].items())[: None if is_all else 1]:
            counts[name] += 1
            sums[name] += value
    if not number:
        return 0, []
    title, measure = ANSWERS[field]
    named = [each for each in ("image", "frame", "seconds", "mask") if each in present]
    ranks = [f"{word}_{place}" for place in range(1, longest + 1) for word in (title, measure)]

    def write(target: Any) -> None:
        text = io.TextIOWrapper(target, encoding="utf-8", errors="backslashreplace", newline="")
        table = csv.writer(text)
        table.writerow([*named, *ranks])
        for line in _read(lines):
            ranked = sorted(line[field].items(), key=lambda own: -own[1])
            row = [*(line.get(each, "") for each in named), *chain(*ranked)]
            table.writerow(row + [""] * (len(named) + len(ranks) - len(row)))
        text.detach()

    write_whole(file, write)
    return number, [
        {title: name, "images": count, f"mean {measure}": f"{sums[name] / count:.3f}"}
        for name, count in counts.most_common(NUM_ROWS)
    ]


def report(found: Predictions) -> str:
    """What was found the most and where to look, for the command line."""
    from limbeck.evaluation.report import table

    names = ("masks", "pictures", "detections.json", "labels")
    kinds = [name for name in names if (found.out / name).exists()]
    files = ", ".join((LINES_FILE, TABLE_FILE, *kinds))
    text = f"{found.num_images} images in {found.out} ({files})."
    if found.num_skipped:
        text += f" {found.num_skipped} could not be read (skipped.jsonl)."
    return f"{table(found.rows)}\n\n{text}"
