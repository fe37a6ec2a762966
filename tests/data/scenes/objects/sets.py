"""Small sets of images with boxes, in every layout, and what they hold."""

import json

import numpy as np
from PIL import Image

NAMES = ("cat", "dog", "emu")
SIZE = (40, 60)  # H, W
BOXES = {
    "a.jpg": [("dog", (10, 5, 30, 25)), ("cat", (0, 0, 8, 8))],
    "b.jpg": [],
    "c.jpg": [("emu", (40, 20, 60, 40))],
}


def photo(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def save(file, seed=0, size=SIZE, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(seed, size)).save(file, **options)


def coco(ids=(7, 90, "x"), images=BOXES, folder="", **changes):
    """What a COCO file says; category ids are sparse, and need not be numbers."""
    id_of = dict(zip(NAMES, ids, strict=True))
    entries = [
        {"id": number + 100, "file_name": f"{folder}{name}", "height": SIZE[0], "width": SIZE[1]}
        for number, name in enumerate(images)
    ]
    annotations = [
        {
            "id": 10 * number + place, "image_id": number + 100, "category_id": id_of[name],
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "iscrowd": 0,
        }
        for number, boxes in enumerate(images.values())
        for place, (name, box) in enumerate(boxes)
    ]  # fmt: skip
    categories = [{"id": own, "name": name} for name, own in id_of.items()]
    return {"images": entries, "annotations": annotations, "categories": categories} | changes


def write_coco(root, name="annotations.json", **options):
    for number, image in enumerate(options.get("images", BOXES)):
        save(root / options.get("folder", "") / image, number)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(coco(**options)))
    return root


def write_yolo(root, splits=("train",), names=NAMES, yaml=None):
    for split in splits:
        for number, (image, boxes) in enumerate(BOXES.items()):
            save(root / split / "images" / image, number)
            rows = [
                f"{NAMES.index(name)} {(x0 + x1) / 2 / SIZE[1]} {(y0 + y1) / 2 / SIZE[0]} "
                f"{(x1 - x0) / SIZE[1]} {(y1 - y0) / SIZE[0]}"
                for name, (x0, y0, x1, y1) in boxes
            ]
            labels = root / split / "labels"
            labels.mkdir(parents=True, exist_ok=True)
            (labels / image.replace(".jpg", ".txt")).write_text("\n".join(rows))
    listed = "\n".join(f"  {index}: {name}" for index, name in enumerate(names))
    entries = "".join(f"{split}: ../{split}/images\n" for split in splits)
    (root / "data.yaml").write_text(yaml or f"{entries}nc: {len(names)}\nnames:\n{listed}\n")
    return root


def write_voc(root, size=SIZE, **options):
    for number, (image, boxes) in enumerate(BOXES.items()):
        save(root / "JPEGImages" / image, number)
        objects = "".join(
            f"<object><name>{name}</name><difficult>{int(name == 'emu')}</difficult><bndbox>"
            f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}.0</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            "</bndbox></object>"
            for name, (x0, y0, x1, y1) in boxes
        )
        sides = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>" if size else ""
        folder = root / "Annotations"
        folder.mkdir(exist_ok=True)
        (folder / image.replace(".jpg", ".xml")).write_text(
            f"<annotation><filename>{image}</filename>{sides}{objects}</annotation>"
        )
    return root


def held(source):
    """What a source holds, by image: the names and boxes."""
    return {
        source.key(index).rpartition("/")[2]: [
            (source.classes[kind], tuple(np.round(box, 4).tolist()))
            for kind, box in zip(
                source.objects(index).classes, source.objects(index).boxes, strict=True
            )
        ]
        for index in range(len(source))
    }


EXPECTED = {key: [(name, tuple(map(float, box))) for name, box in v] for key, v in BOXES.items()}
