"""One set of four images with objects, and every layout in which people would bring it."""

import json

import numpy as np
import pytest

from limbeck.data.scenes.objects.source import Annotated
from tests.data.images import encode
from tests.data.scenes.sets import NAMES, SIZES, images, save

CLASSES = ("car", "dog", "person")
BOXES = [
    [("person", (2, 3, 10, 9)), ("car", (0, 0, 24, 16))],
    [("dog", (4, 4, 16, 20))],
    [],
    [("person", (1, 2, 5, 6)), ("person", (20, 10, 30, 18)), ("car", (7, 3, 9, 17))],
]
"""Of each image: (class, left, top, right, bottom) in whole pixels; the third is a negative."""


def truth(classes=CLASSES):
    """As it is to be read."""
    found = []
    for objects in BOXES:
        boxes = np.array([box for _, box in objects], np.float64).reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        numbers = np.array([classes.index(name) for name, _ in objects], np.int64)
        none = np.zeros(len(objects), bool)
        found.append(Annotated(boxes, numbers, none, sides.prod(1), (None,) * len(objects)))
    return found


def write_images(root, name="images/{}.jpg"):
    for each, image in zip(NAMES, images(), strict=True):
        save(root / name.format(each), image)
    return root


def coco_json(ids=(1, 2, 3), prefix="", image_id=int, **changes):
    """The set as COCO has it, with categories of such ids; ``changes`` replace its parts."""
    found = {
        "images": [
            {"id": image_id(7 * place), "file_name": f"{prefix}{name}.jpg", "width": w, "height": h}
            for place, (name, (w, h)) in enumerate(zip(NAMES, SIZES, strict=True))
        ],
        "annotations": [
            {
                "id": 10 * place + number,
                "image_id": image_id(7 * place),
                "category_id": ids[CLASSES.index(name)],
                "bbox": [left, top, right - left, bottom - top],
            }
            for place, objects in enumerate(BOXES)
            for number, (name, (left, top, right, bottom)) in enumerate(objects)
        ],
        "categories": [{"id": i, "name": n} for i, n in zip(ids, CLASSES, strict=True)],
    }
    return found | changes


def coco(root, **how):
    write_images(root)
    (root / "instances_default.json").write_text(json.dumps(coco_json(**how)))
    return root


def roboflow_coco(root):
    """A JSON in each split's folder, with a class that only stands above the others."""
    write_images(root, "train/{}.jpg")
    found = coco_json()
    for category in found["categories"]:
        category["supercategory"] = "things"
    found["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    (root / "train" / "_annotations.coco.json").write_text(json.dumps(found))
    return root


def yolo_rows(place, classes=CLASSES):
    width, height = SIZES[place]
    rows = []
    for name, (left, top, right, bottom) in BOXES[place]:
        centre = (left + right) / 2 / width, (top + bottom) / 2 / height
        size = (right - left) / width, (bottom - top) / height
        rows.append(" ".join(map(str, [classes.index(name), *centre, *size])))
    return "\n".join(rows) + "\n"


def write_labels(root, name="labels/{}.txt"):
    for place, each in enumerate(NAMES):
        file = root / name.format(each)
        file.parent.mkdir(parents=True, exist_ok=True)
        if BOXES[place]:  # a negative has none
            file.write_text(yolo_rows(place))
    return root


def yolo(root):
    write_labels(write_images(root))
    (root / "data.yaml").write_text("train: images\nnames: [car, dog, person]\n")
    return root


def roboflow_yolo(root):
    """Whose paths start a folder too high."""
    write_labels(write_images(root, "train/images/{}.jpg"), "train/labels/{}.txt")
    text = "train: ../train/images\nval: ../valid/images\nnc: 3\nnames: ['car', 'dog', 'person']\n"
    (root / "data.yaml").write_text(text)
    return root


def yolo_list(root):
    """A list of files below a path of another machine, names by number."""
    write_labels(write_images(root, "images/train/{}.jpg"), "labels/train/{}.txt")
    (root / "train.txt").write_text("".join(f"./images/train/{name}.jpg\n" for name in NAMES))
    names = "names:\n  0: car\n  1: dog\n  2: person  # of any age\n"
    (root / "coco8.yaml").write_text(f"path: /home/ann/coco8\ntrain: [train.txt]\n{names}")
    return root


def label_studio(root):
    write_labels(write_images(root))
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def voc_xml(place, size=True, shift=1):
    width, height = SIZES[place]
    rows = [f"<size><width>{width}</width><height>{height}</height></size>"] if size else []
    for name, (left, top, right, bottom) in BOXES[place]:
        sides = {"xmin": left + shift, "ymin": top + shift, "xmax": right, "ymax": bottom}
        box = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
        rows.append(f"<object><name>{name}</name><bndbox>{box}</bndbox></object>")
    text = "".join(rows)
    return f"<annotation><filename>{NAMES[place]}.jpg</filename>{text}</annotation>"


def voc(root):
    top = root / "VOCdevkit" / "VOC2012"
    write_images(top, "JPEGImages/{}.jpg")
    (top / "ImageSets" / "Main").mkdir(parents=True)
    (top / "Annotations").mkdir()
    (top / "ImageSets" / "Main" / "train.txt").write_text("\n".join(NAMES))
    (top / "ImageSets" / "Main" / "car_train.txt").write_text("\n".join(f"{n} -1" for n in NAMES))
    for place, name in enumerate(NAMES):
        (top / "Annotations" / f"{name}.xml").write_text(voc_xml(place))
    return root


def voc_beside(root):
    """Each beside its image, from 0, without sizes."""
    write_images(root, "train/{}.jpg")
    for place, name in enumerate(NAMES):
        (root / "train" / f"{name}.xml").write_text(voc_xml(place, size=False, shift=0))
    return root


def table(root, is_nested=True, has_names=True, has_words=False):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = []
    for objects in BOXES:
        boxes = [[float(side) for side in box] for _, box in objects]
        own = [name if has_words else CLASSES.index(name) for name, _ in objects]
        pairs = [{"bbox": b, "category": c} for b, c in zip(boxes, own, strict=True)]
        rows.append({"bbox": boxes, "category": own} if is_nested else pairs)
    shown = [{"bytes": encode(image), "path": None} for image in images()]
    made = pyarrow.table({"image": shown, "objects": rows})
    if has_names:
        feature = {"feature": {"names": CLASSES, "_type": "ClassLabel"}, "_type": "Sequence"}
        notes = {"info": {"features": {"objects": {"category": feature}}}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(notes)})
    root.mkdir(exist_ok=True)
    parquet.write_table(made, root / "train.parquet")
    return root


LAYOUTS = {
    "COCO": coco,
    "COCO of Roboflow": roboflow_coco,
    "YOLO": yolo,
    "YOLO of Roboflow": roboflow_yolo,
    "YOLO list": yolo_list,
    "YOLO of Label Studio": label_studio,
    "VOC": voc,
    "VOC beside": voc_beside,
}
