"""What others read of a detector's boxes."""

import json

import numpy as np
import pytest
from pycocotools import mask as tools
from pycocotools.coco import COCO

from limbeck.data.scenes.raster import encode_runs
from limbeck.recipes.ship.box_files import write_coco, write_yolo

INSIDE = np.zeros((40, 60), bool)
INSIDE[5:20, 10:41] = True
LINES = [
    {"image": "a/x.png", "size": [60, 40], "boxes": [
        {
            "class": "dog", "score": 0.9, "box": [10.0, 5.0, 31.0, 15.0],
            "mask": {"size": [40, 60], "counts": encode_runs(INSIDE)},
        },
    ]},
    {"image": "v.mp4", "frame": 7, "size": [60, 40], "boxes": []},
]  # fmt: skip


def test_coco_s_own_tool_reads_the_results(tmp_path, capsys):
    write_coco(iter(LINES), tmp_path, ["cat", "dog"], None)
    rows = json.loads((tmp_path / "detections.json").read_text())
    assert [(each["image_id"], each["category_id"]) for each in rows] == [("a/x.png", 2)]
    truth = COCO()
    truth.dataset = {"images": [{"id": "a/x.png"}], "annotations": [], "categories": []}
    truth.createIndex()
    (own,) = truth.loadRes(rows).loadAnns([1])
    assert tools.area(own["segmentation"]) == INSIDE.sum() == 31 * 15
    assert tools.toBbox(own["segmentation"]).tolist() == own["bbox"] == [10, 5, 31, 15]


def test_yolo_has_a_file_for_every_image_also_without_objects(tmp_path):
    write_yolo(iter(LINES), tmp_path, ["cat", "dog"], lambda line: f"{line['image']}.png")
    kind, *numbers = (tmp_path / "labels" / "a" / "x.png.txt").read_text().split()
    assert kind == "1"
    assert [float(each) for each in numbers] == pytest.approx(
        [25.5 / 60, 12.5 / 40, 31 / 60, 15 / 40], abs=1e-6
    )
    assert (tmp_path / "labels" / "v.mp4.txt").read_text() == ""
