"""Tables with a column of objects, as ``datasets`` writes them."""

import datasets
import pytest

from limbeck.data.scenes.objects.open import open_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.errors import UserError
from tests.data.scenes.objects import sets

FORMATS = {
    "xywh": lambda x0, y0, x1, y1: [x0, y0, x1 - x0, y1 - y0],
    "xyxy": lambda *box: list(box),
    "cxcywh": lambda x0, y0, x1, y1: [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0],
    "relative-xyxy": lambda x0, y0, x1, y1: [x0 / 60, y0 / 40, x1 / 60, y1 / 40],
}


def written(root, box_format="xywh", names=sets.NAMES):
    rows = {"image": [], "objects": []}
    for number, (image, boxes) in enumerate(sets.BOXES.items()):
        sets.save(root / "made" / image, number)
        data = (root / "made" / image).read_bytes()
        rows["image"].append({"bytes": data, "path": image})
        rows["objects"].append({
            "bbox": [FORMATS[box_format](*map(float, box)) for _, box in boxes],
            "category": [sets.NAMES.index(name) for name, _ in boxes],
        })  # fmt: skip
    kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
    features = datasets.Features({
        "image": datasets.Image(),
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
            "category": datasets.List(kind),
        },
    })  # fmt: skip
    table = datasets.Dataset.from_dict(rows, features=features)
    (root / "tables").mkdir()
    table.to_parquet(root / "tables" / "train.parquet")
    return root / "tables"


def opened(root, **options):
    return open_objects(str(root), ObjectOptions(root=str(root), **options))


@pytest.mark.parametrize("box_format", FORMATS)
def test_boxes_are_what_the_option_says(box_format, tmp_path):
    source = opened(written(tmp_path, box_format), box_format=box_format)
    assert source.classes == sets.NAMES and sets.held(source) == sets.EXPECTED


def test_what_the_table_does_not_say_is_asked_for(tmp_path):
    root = written(tmp_path, names=())
    with pytest.raises(UserError, match="pass --data.box-format xywh"):
        opened(root)
    with pytest.raises(UserError, match="are numbers without names"):
        opened(root, box_format="xywh")
    given = opened(root, box_format="xywh", class_names=sets.NAMES)
    assert sets.held(given) == sets.EXPECTED
    with pytest.raises(UserError, match="has the class 2, and there are 2 names"):
        opened(root, box_format="xywh", class_names=("cat", "dog"))
    with pytest.raises(UserError, match="has no column 'boxen'"):
        opened(root, box_format="xywh", label_column="boxen")
