"""One set of four scenes, and every layout in which people would bring it."""

import json

import numpy as np
import pytest
from PIL import Image

from limbeck.data.scenes.published import CAMVID, voc_colour
from limbeck.records import IGNORE
from tests.data.images import encode, photo, write_shard

SIZES = [(24, 16), (20, 20), (16, 24), (30, 18)]
"""(width, height)"""
NAMES = ["a1", "b2", "c3", "d4"]
TABLE = ["sky 10 200 30", "road 128 64 128", "car 7 7 200", "void 0 0 0"]
COLOURS = {0: (10, 200, 30), 1: (128, 64, 128), 2: (7, 7, 200), IGNORE: (0, 0, 0)}


def label_maps(ignored=IGNORE):
    """Of rectangles of the classes 0, 1, 2, with a border of 255."""
    maps = []
    for number, (width, height) in enumerate(SIZES):
        labels = np.zeros((height, width), np.uint8)
        labels[height // 2 :] = 1
        labels[3 : 8 + number, 4:12] = 2
        labels[0] = ignored
        maps.append(labels)
    return maps


def images():
    return [photo(*size, seed=seed) for seed, size in enumerate(SIZES)]


def save(file, image, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, **options)


def write(root, image_name, mask_name, masks, text=()):
    """The images and masks as ``images/{}.jpg`` and the like; ``text`` as (name, content)."""
    for name, image, mask in zip(NAMES, images(), masks, strict=True):
        save(root / image_name.format(name), image)
        save(root / mask_name.format(name), mask)
    for name, content in text:
        (root / name).write_text(content)
    return root


def painted(labels, colours):
    table = np.zeros((256, 3), np.uint8)
    for value, colour in colours.items():
        table[value] = colour
    return table[labels]


def recoded(labels, values):
    table = np.arange(256)
    for old, new in values.items():
        table[old] = new
    return table[labels].astype(np.uint8)


def with_palette(labels, colours=None):
    image = Image.fromarray(labels)
    image.putpalette([part for v in range(256) for part in (colours or voc_colour)(v)])
    return image


def parallel(root):
    return write(root, "images/{}.jpg", "masks/{}.png", label_maps())


def of_splits(root):
    for split in ("train", "val"):
        write(root, f"{split}/images/{{}}.jpg", f"{split}/masks/{{}}.png", label_maps())
    return root


def endings(root):
    return write(root, "{}.jpg", "{}_mask.png", label_maps())


def camvid(root):
    colours = dict(enumerate(colour for _, colour in CAMVID[:3])) | {IGNORE: (0, 0, 0)}
    masks = [painted(labels, colours) for labels in label_maps()]
    return write(root, "701_StillsRaw_full/{}.png", "LabeledApproved_full/{}_L.png", masks)


def ade20k(root):
    masks = [recoded(labels, {IGNORE: 0, 0: 1, 1: 2, 2: 3}) for labels in label_maps()]
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    names = ("wall", "building, edifice", "sky")
    lines += [f"{number}\t0.1\t9\t9\t1\t{name}" for number, name in enumerate(names, 1)]
    for split in ("training", "validation"):
        for number, (image, mask) in enumerate(zip(images(), masks, strict=True)):
            name = f"ADE_{'train' if split == 'training' else 'val'}_{number:08d}"
            save(root / "images" / split / f"{name}.jpg", image)
            save(root / "annotations" / split / f"{name}.png", mask)
    (root / "objectInfo150.txt").write_text("\n".join(lines))
    return root


def cityscapes(root, ending="labelIds", values=((0, 7), (1, 8), (2, 11), (IGNORE, 3))):
    masks = [recoded(labels, dict(values)) for labels in label_maps()]
    return write(
        root,
        "leftImg8bit/train/ulm/ulm_{}_000019_leftImg8bit.png",
        f"gtFine/train/ulm/ulm_{{}}_000019_gtFine_{ending}.png",
        masks,
    )


def cityscapes_train_ids(root):
    cityscapes(root)
    return cityscapes(root, "labelTrainIds", ())


def voc(root):
    top = root / "VOCdevkit" / "VOC2012"
    masks = [with_palette(labels) for labels in label_maps()]
    lists = top / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(NAMES))
    (lists / "val.txt").write_text(NAMES[0])
    write(top, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", masks)
    (top / "class_names.txt").write_text("background\naeroplane\nbicycle")
    return root


def colour_table(root):
    masks = [painted(labels, COLOURS) for labels in label_maps()]
    text = [("classes.txt", "\n".join(TABLE))]
    return write(root, "images/{}.jpg", "labels/{}.png", masks, text)


def sixteen_bits(root):
    masks = [labels.astype(np.uint16) for labels in label_maps()]
    return write(root, "img/{}.jpg", "gt/{}.png", masks)


def large_values(root):
    masks = [labels.astype(np.uint16) for labels in label_maps()]
    for each in masks:
        each[each == 1], each[each == 2] = 1000, 40_000
    return write(root, "img/{}.jpg", "gt/{}.png", masks)


def palette(root):
    """Of colours that are no greys, and none of them an index."""
    masks = [with_palette(labels, lambda v: (v, 255 - v, 77)) for labels in label_maps()]
    return write(root, "images/{}.jpg", "annotations/{}.png", masks)


def table(root, masks=None):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    masks = masks or label_maps()
    rows = {
        "image": [{"bytes": encode(image), "path": None} for image in images()],
        "label": [{"bytes": encode(Image.fromarray(mask), "PNG"), "path": None} for mask in masks],
    }
    root.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table(rows), root / "train.parquet")
    return root


def shards(root):
    members = []
    for name, image, mask in zip(NAMES, images(), label_maps(), strict=True):
        members += [(f"{name}.jpg", encode(image))]
        members += [(f"{name}.seg.png", encode(Image.fromarray(mask), "PNG"))]
    root.mkdir(exist_ok=True)
    write_shard(root / "000.tar", members)
    return root


def coco(root, segmentation):
    """Two categories of odd ids over the background; ``segmentation`` of a bool map."""
    found = {"images": [], "annotations": [], "categories": []}
    found["categories"] = [{"id": 17, "name": "road"}, {"id": 90, "name": "car"}]
    for number, (name, labels) in enumerate(zip(NAMES, label_maps(ignored=0), strict=True)):
        height, width = labels.shape
        save(root / "images" / f"{name}.jpg", images()[number])
        entry = {"id": number + 5, "file_name": f"{name}.jpg", "height": height, "width": width}
        found["images"].append(entry)
        for value, category in ((2, 90), (1, 17)):
            found["annotations"].append(
                {
                    "id": len(found["annotations"]),
                    "image_id": number + 5,
                    "category_id": category,
                    "segmentation": segmentation(labels == value),
                    "iscrowd": 0,
                }
            )
    (root / "instances_default.json").write_text(json.dumps(found))
    return root


def outlines(is_inside):
    """A rectangle for each run of a row: exact, whatever the shape."""
    found = []
    for row, line in enumerate(is_inside):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
        for left, right in edges.reshape(-1, 2).tolist():
            found.append([left, row, right, row, right, row + 1, left, row + 1])
    return found


def run_lengths(is_inside):
    flat = is_inside.T.ravel().astype(int)
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [len(flat)]])).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": list(is_inside.shape)}


def compressed(is_inside):
    runs = run_lengths(is_inside)
    letters = ""
    for place, count in enumerate(runs["counts"]):
        value = count - (runs["counts"][place - 2] if place > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            is_last = value == (-1 if bits & 16 else 0)
            letters += chr(48 + (bits if is_last else bits | 32))
            if is_last:
                break
    return runs | {"counts": letters}


THREE_CLASSES = {
    "parallel tree": (parallel, ("0", "1", "2")),
    "splits above": (of_splits, ("0", "1", "2")),
    "_mask": (endings, ("0", "1", "2")),
    "CamVid _L": (camvid, tuple(name for name, _ in CAMVID)),
    "ADE20K": (ade20k, ("wall", "building", "sky")),
    "Cityscapes labelIds": (cityscapes, None),
    "Cityscapes trainIds": (cityscapes_train_ids, None),
    "VOC": (voc, ("background", "aeroplane", "bicycle")),
    "colour table": (colour_table, ("sky", "road", "car")),
    "16-bit": (sixteen_bits, ("0", "1", "2")),
    "16-bit, large values": (large_values, ("0", "1000", "40000")),
    "palette": (palette, ("0", "1", "2")),
    "table": (table, ("0", "1", "2")),
    "shards": (shards, ("0", "1", "2")),
}
"""(writes the set into a folder, its classes)."""


def two_maps():
    return [(labels == 2).astype(np.uint8) for labels in label_maps()]


def one_bit(root):
    masks = [Image.fromarray(labels * 255).convert("1") for labels in two_maps()]
    return write(root, "images/{}.jpg", "masks/{}.png", masks)


def black_and_white(root):
    return write(root, "images/{}.jpg", "masks/{}.png", [m * 255 for m in two_maps()])


def jpeg(root):
    for name, image, mask in zip(NAMES, images(), two_maps(), strict=True):
        save(root / "images" / f"{name}.jpg", image)
        large = Image.fromarray(mask * 255)
        save(root / "masks" / f"{name}.jpg", large, quality=100)
    return root


def grey_palette(root):
    """Indices 0 and 1 that stand for black and white."""
    masks = [with_palette(m, lambda v: (255 * (v == 1),) * 3) for m in two_maps()]
    return write(root, "images/{}.jpg", "masks/{}.png", masks)


def grey_colours(root):
    masks = [np.stack([m * 255] * 3, -1) for m in two_maps()]
    return write(root, "images/{}.jpg", "masks/{}.png", masks)


TWO_CLASSES = {
    "1-bit": one_bit,
    "0 and 255": black_and_white,
    "JPEG": jpeg,
    "grey palette": grey_palette,
    "grey as RGB": grey_colours,
}
