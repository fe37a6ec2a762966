"""What the detectors of the first seed find, beside the truth: detections.png.

    python -m experiments.bccd.pictures --data BCCD --runs runs/bccd/arms \\
        --teachers runs/bccd/teachers [--rivals runs/bccd/rivals] --out experiments/bccd

Of every detector are drawn the answers above its own best threshold.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import limbeck
from experiments.bccd.rivals import answers_of_yolo, open_split
from experiments.bccd.run import KINDS, folder_of
from limbeck.data.options import DataOptions
from limbeck.data.scenes.objects.source import ObjectSource, ObjectSubset
from limbeck.data.skipped import SkippedLog
from limbeck.documents import read_json
from limbeck.evaluation.overlay import palette
from limbeck.models.dense.detector import Detector
from limbeck.recipes.run.boxes import scores_over

NUM_IMAGES = 4
SHOWN = "from scratch"
WIDTH, HEIGHT, LINE = 240, 180, 16
Boxes = tuple[np.ndarray, np.ndarray]
"""(n, 4) in pixels of the image, and classes (n,)."""


def main() -> None:
    """Write detections.png."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    for name in ("--data", "--runs", "--teachers", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--rivals", type=Path, help="of rivals.py: YOLO26n's answers")
    arguments = parser.parse_args()
    whole = open_split(arguments.data, "test")
    indices = np.linspace(0, len(whole) - 1, NUM_IMAGES).astype(int)
    source = ObjectSubset(whole, indices)
    truth = [source.objects(index) for index in range(NUM_IMAGES)]
    columns: dict[str, list[Boxes]] = {"truth": [(each.boxes, each.classes) for each in truth]}
    for kind in KINDS:
        own = folder_of(arguments.runs, kind, SHOWN, 0)
        columns[f"{kind}, {SHOWN}"] = _found(own, source)
        columns[f"{kind}, teacher"] = _found(arguments.teachers / kind, source)
    if arguments.rivals is not None:
        columns["YOLO26n"] = _of_yolo(arguments.rivals, source)
    # An octree keeps colours of few pixels, which a median cut would merge.
    small = _picture(source, columns).quantize(
        method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    )
    small.save(arguments.out / "detections.png", optimize=True)


def _found(run: Path, source: ObjectSource) -> list[Boxes]:
    network = limbeck.load(run)
    assert isinstance(network, Detector)
    kept = scores_over(
        network, source, data=DataOptions(num_workers=0), batch_size=NUM_IMAGES,
        skipped=SkippedLog(None, len(source), 0.0),
    )  # fmt: skip
    least = read_json(run / "student.json")["scores"]["threshold"]
    return [
        (each.boxes[each.scores >= least], each.classes[each.scores >= least])
        for each in kept.images
    ]


def _of_yolo(rivals: Path, source: ObjectSource) -> list[Boxes]:
    least = read_json(rivals / "YOLO26n_test_0.json")["threshold"]
    found = []
    for index in range(len(source)):
        pixels, _ = source.read_objects(index)
        said = answers_of_yolo(rivals, 0, source.key(index), (pixels.shape[0], pixels.shape[1]))
        is_sure = (said.scores >= least).numpy()
        found.append((said.boxes.numpy()[is_sure], said.classes.numpy()[is_sure]))
    return found


def _picture(source: ObjectSource, columns: Mapping[str, list[Boxes]]) -> Image.Image:
    colors = [tuple(color) for color in palette(len(source.classes)).tolist()]
    size = (WIDTH * len(columns), (HEIGHT + 2) * len(source) + 2 * LINE)
    whole = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(whole)
    for column, (name, found) in enumerate(columns.items()):
        draw.text((WIDTH * column + 4, 2), name, fill="black")
        for place, (boxes, classes) in enumerate(found):
            image = Image.fromarray(source.read_objects(place)[0])
            shown = image.resize((WIDTH - 2, HEIGHT))
            factors = np.tile([shown.width / image.width, shown.height / image.height], 2)
            pen = ImageDraw.Draw(shown)
            for box, kind in zip((boxes * factors).tolist(), classes.tolist(), strict=True):
                pen.rectangle(box, outline=colors[kind], width=2)
            whole.paste(shown, (WIDTH * column, LINE + (HEIGHT + 2) * place))
    for index, name in enumerate(source.classes):
        left, top = 120 * index, whole.height - LINE
        draw.rectangle((left, top, left + 12, top + 12), fill=colors[index])
        draw.text((left + 16, top), name, fill="black")
    return whole


if __name__ == "__main__":
    main()
