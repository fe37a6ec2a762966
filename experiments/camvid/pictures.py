"""What the segmenters of the first seed see, beside the truth: a picture for each backbone.

    python -m experiments.camvid.pictures --data CAMVID --teacher runs/camvid/teacher \\
        --runs runs/camvid/arms --out experiments/camvid
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import limbeck
from experiments.camvid.run import ARMS, BACKBONES, folder_of, scenes_of
from limbeck.data.scenes.open import open_scenes
from limbeck.data.scenes.scene import Scenes
from limbeck.evaluation.options import MapOptions
from limbeck.evaluation.overlay import palette
from limbeck.evaluation.sliding import predict_map
from limbeck.models.dense.segmenter import Segmenter
from limbeck.records import IGNORE

NUM_SCENES = 4
WIDTH, HEIGHT, LINE = 200, 150, 16


def main() -> None:
    """Write plain.png and tiny_vit.png."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    for name in ("--data", "--teacher", "--runs", "--out"):
        parser.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args()
    scenes = open_scenes(str(arguments.data), scenes_of(str(arguments.data)), "test")
    indices = np.linspace(0, len(scenes) - 1, NUM_SCENES).astype(int).tolist()
    for backbone in BACKBONES:
        networks = {"teacher": arguments.teacher} | {
            arm: folder_of(arguments.runs, backbone, arm, 0) for arm in ARMS
        }
        picture = _picture(scenes, indices, networks)
        # An octree keeps colours of few pixels, which a median cut would merge.
        small = picture.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        small.save(arguments.out / f"{backbone}.png", optimize=True)


def _picture(scenes: Scenes, indices: list[int], networks: dict[str, Path]) -> Image.Image:
    colors = np.concatenate((palette(len(scenes.classes)), np.zeros((1, 3), np.uint8)))
    shown = [scenes.read_scene(index) for index in indices]
    columns = {"image": [image for image, _ in shown]}
    columns["truth"] = [_drawn(mask, colors) for _, mask in shown]
    for name, run in networks.items():
        network = limbeck.load(run)
        assert isinstance(network, Segmenter)
        network.eval()
        columns[name] = [
            _drawn(_predicted(network, image), colors) for image, _ in shown
        ]  # fmt: skip
    whole = Image.new("RGB", (WIDTH * len(columns), (HEIGHT + 2) * len(shown) + 2 * LINE), "white")
    draw = ImageDraw.Draw(whole)
    for column, (name, pictures) in enumerate(columns.items()):
        draw.text((WIDTH * column + 4, 2), name, fill="black")
        for row, pixels in enumerate(pictures):
            small = Image.fromarray(pixels).resize((WIDTH - 2, HEIGHT))
            whole.paste(small, (WIDTH * column, LINE + (HEIGHT + 2) * row))
    for index, name in enumerate(scenes.classes):
        left, top = 120 * index, whole.height - LINE
        draw.rectangle((left, top, left + 12, top + 12), fill=tuple(colors[index].tolist()))
        draw.text((left + 16, top), name, fill="black")
    return whole


def _predicted(network: Segmenter, image: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return predict_map(network, pixels, MapOptions(mode="whole")).numpy()


def _drawn(classes: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Colours of classes; what is ignored is black."""
    drawn: np.ndarray = colors[np.where(classes == IGNORE, len(colors) - 1, classes)]
    return drawn


if __name__ == "__main__":
    main()
