"""Boxes that a detector has found, as files of others: COCO's results, YOLO's text."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from limbeck.documents import to_json
from limbeck.files import write_text, write_whole

Line = dict[str, Any]
NameOf = Callable[[Line], str]


def write_coco(lines: Iterator[Line], out: Path, classes: Sequence[str], name_of: NameOf) -> None:
    """COCO's results in detections.json, one object after the other."""
    del name_of

    def write(target: Any) -> None:
        target.write(b"[")
        first = b"\n"
        for line in lines:
            for each in line["boxes"]:
                entry = {
                    "image_id": line["image"], "category_id": classes.index(each["class"]) + 1,
                    "bbox": each["box"], "score": each["score"],
                }  # fmt: skip
                entry |= {"frame": line["frame"]} if "frame" in line else {}
                entry |= {"segmentation": each["mask"]} if "mask" in each else {}
                target.write(first + to_json(entry, indent=None).encode())
                first = b",\n"
        target.write(b"\n]\n")

    write_whole(out / "detections.json", write)


def write_yolo(lines: Iterator[Line], out: Path, classes: Sequence[str], name_of: NameOf) -> None:
    """Below labels/ a text file for each image: class, centre and size in parts of the image's."""
    for line in lines:
        rows = []
        for each in line["boxes"]:
            left, top, wide, high = each["box"]
            parts = (left + wide / 2, top + high / 2, wide, high)
            sides = zip(parts, line["size"] * 2, strict=True)
            said = " ".join(f"{value / side:.6f}" for value, side in sides)
            rows.append(f"{classes.index(each['class'])} {said}\n")
        file = (out / "labels" / name_of(line)).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(rows))


BOX_FILES = {"coco": write_coco, "yolo": write_yolo}
"""Forms by the name of ``--boxes``."""
