"""``limbeck predict``: what a finished network says of images: pictures, masks, lines of JSON.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from limbeck.config import Probability, options, to_plain
from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.evaluation.options import MapOptions
from limbeck.recipes.run import checks
from limbeck.recipes.run.options import CropEvalOptions

if TYPE_CHECKING:
    from limbeck.data.folder import FilesSource
    from limbeck.data.skipped import SkippedLog
    from limbeck.data.source import Subset
    from limbeck.models.finished import Savable

log = logging.getLogger("limbeck")

LINES_FILE = "predictions.jsonl"
NUM_CLASSES = 5


@options
class PredictConfig:
    """Show images to a finished segmenter or classifier, and keep what it says of them."""

    network: Annotated[str, tyro.conf.Positional] = ""
    """The finished network: a run's folder."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Image files, folders of them, or patterns such as 'photos/*.jpg'."""
    out: Path = Path("predictions")
    """Folder for predictions.jsonl (a line for each image) and, of a segmenter, masks/ (PNGs of
    class indices in the image's size) and pictures/."""
    overwrite: bool = False
    """Replace what another network, or other options, have left there."""
    pictures: bool = True
    """Also draw what was found into the images."""
    opacity: Probability = 0.5
    """Of what is drawn in."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    data: DataOptions = DataOptions()
    maps: MapOptions = MapOptions()
    crop: CropEvalOptions = CropEvalOptions()


@dataclass(frozen=True)
class Predictions:
    """Where they are, of how many images, and how many could not be read."""

    out: Path
    num_images: int
    num_skipped: int


def check(config: PredictConfig) -> None:
    """All that can be wrong without opening an image or a network; raises UserError."""
    if not config.network or not config.images:
        raise UserError("A network and images are needed; run: limbeck predict RUN IMAGES.")
    checks.check_path(config.network, "limbeck predict")
    for place in config.images:
        if not glob.has_magic(place):
            checks.check_path(place, "limbeck predict")


def predict(config: PredictConfig) -> Predictions:
    """Predict all images, or those that are left where it was stopped.

    Raises UserError for bad input and for a folder with something else.
    """
    check(config)
    from limbeck.data.skipped import SkippedLog
    from limbeck.data.source import Subset
    from limbeck.documents import parse_json, to_json
    from limbeck.engine.checkpoint import open_run
    from limbeck.engine.distributed import ranks_session
    from limbeck.files import write_text
    from limbeck.models.dense.segmenter import Segmenter
    from limbeck.models.finished import load_finished

    checks.check_one_process("predict is one process")
    with ranks_session(config.device) as ranks:
        network = load_finished(config.network)
        facts = network.facts
        if not facts.num_classes:
            raise UserError(
                f"{config.network} knows no classes, so there is nothing to predict; name a run of "
                "limbeck segment or finetune."
            )
        is_segmenter = isinstance(network, Segmenter)
        unused = ("crop",) if is_segmenter else ("maps", "pictures", "opacity", "precision")
        checks.check_unset(config, unused, f"on {config.network}")
        source = open_files(config.images)
        plain = {name: value for name, value in to_plain(config).items() if name != "images"}
        run = open_run(
            config.out,
            {"verb": "predict", **plain},
            # Images go by their names below it: of another folder they would be taken for these.
            {"student": facts.origin.get("weight_hash"), "folder": str(source.root)},
            overwrite=config.overwrite,
        )
        lines = run.dir / LINES_FILE
        # What a kill has left of a line is of an image that is predicted again.
        kept = lines.read_text(encoding="utf-8").split("\n")[:-1] if lines.exists() else []
        write_text(lines, "".join(f"{line}\n" for line in kept))
        done = {parse_json(line, dict[str, Any], LINES_FILE)["image"] for line in kept}
        left = [index for index in range(len(source)) if source.key(index) not in done]
        todo, skipped = (
            Subset(source, left),
            SkippedLog(run.dir / "skipped.jsonl", len(source), 1.0),
        )
        network = network.to(ranks.device).eval()
        work = _maps if is_segmenter else _classes
        with lines.open("a", encoding="utf-8") as file:
            for number, said in enumerate(work(config, network, todo, run.dir, skipped), 1):
                file.write(to_json(said, indent=None) + "\n")
                file.flush()
                if number % 100 == 0:
                    log.info("%d of %d images", number, len(todo))
        run.finish()
        num_skipped = len(todo) - (_num_lines(lines) - len(done))
    return Predictions(run.dir, _num_lines(lines), num_skipped)


def open_files(places: tuple[str, ...]) -> FilesSource:
    """The image files of all places, each once; raises UserError where there are none."""
    from limbeck.data.folder import FilesSource
    from limbeck.data.open import open_source

    files: dict[Path, None] = {}
    for place in places:
        found = sorted(glob.glob(place, recursive=True)) if glob.has_magic(place) else [place]
        for each in map(Path, found):
            if each.is_dir():
                source = open_source(str(each), DataOptions(), "train")
                files |= dict.fromkeys(each / source.key(index) for index in range(len(source)))
            else:
                files[each] = None
    if not files:
        raise UserError(f"There are no images in {' '.join(places)}.")
    whole = [file.absolute() for file in files]
    root = Path(os.path.commonpath([file.parent for file in whole]))
    keys = [file.relative_to(root).as_posix() for file in whole]
    return FilesSource(root, keys, (), None)


def _maps(
    config: PredictConfig, network: Any, todo: Subset, out: Path, skipped: SkippedLog
) -> Iterator[dict[str, Any]]:
    import torch

    from limbeck.data.scenes.loader import eval_scenes
    from limbeck.evaluation.overlay import draw_map, index_image, palette
    from limbeck.evaluation.sliding import predict_map

    device = network.backbone.mean.device
    names = _names(network)
    colors = palette(len(names))
    whole = todo.source  # names do not hang on what is done already
    stems = Counter(_stem(whole.key(index)) for index in range(len(whole)))
    for batch in eval_scenes(todo, data=config.data, device=device, skipped=skipped):
        (key,) = batch.keys
        found = predict_map(network, batch.images[0], config.maps, config.precision)
        name = f"{_stem(key) if stems[_stem(key)] == 1 else key}.png"
        _save(index_image(found, colors), out / "masks" / name)
        if config.pictures:
            pixels = (255 * batch.images[0]).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            drawn = draw_map(pixels, found, colors, names, config.opacity)
            _save(drawn, out / "pictures" / name)
        counts = torch.bincount(found.flatten().long(), minlength=len(names)) / found.numel()
        shares = {each: float(part) for each, part in zip(names, counts, strict=True) if part}
        size = [found.shape[1], found.shape[0]]
        yield {"image": key, "mask": f"masks/{name}", "size": size, "shares": shares}


def _classes(
    config: PredictConfig, network: Any, todo: Subset, out: Path, skipped: SkippedLog
) -> Iterator[dict[str, Any]]:
    del out
    import torch

    from limbeck.recipes.run.probes import centre_crops
    from limbeck.records import Tap

    device = next(network.parameters()).device
    names = _names(network)
    shown = centre_crops(network, todo, config.crop, config.data, device, skipped)
    for batch in shown:
        with torch.no_grad():
            logits = network(batch.images, None, (Tap("logits"),)).taps[Tap("logits")].float()
        values, places = logits.softmax(dim=1).topk(min(NUM_CLASSES, len(names)))
        for key, own, which in zip(batch.keys, values.tolist(), places.tolist(), strict=True):
            answers = dict(zip((names[place] for place in which), own, strict=True))
            yield {"image": key, "classes": answers}


def _names(network: Savable) -> list[str]:
    names = network.facts.origin.get("classes") or range(network.facts.num_classes)
    return [str(name) for name in names]


def _stem(key: str) -> str:
    return key.rpartition(".")[0] or key


def _save(image: Any, file: Path) -> None:
    from limbeck.files import write_whole

    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda target: image.save(target, "PNG"))


def _num_lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def report(found: Predictions) -> str:
    """Where to look, for the command line."""
    skipped = (
        f" {found.num_skipped} could not be read (skipped.jsonl)." if found.num_skipped else ""
    )
    masks = found.out / "masks"
    kinds = "predictions.jsonl, masks, pictures" if masks.exists() else "predictions.jsonl"
    return f"{found.num_images} images in {found.out} ({kinds}).{skipped}"
