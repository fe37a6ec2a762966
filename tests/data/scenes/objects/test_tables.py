import json

import pytest

from limbeck.errors import UserError
from tests.data.scenes.objects import sets
from tests.data.scenes.objects.test_open import opened
from tests.data.scenes.sets import SIZES

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def rewritten(root, change):
    """The set's table with its objects changed."""
    file = sets.table(root) / "train.parquet"
    made = parquet.read_table(file)
    rows = [change(place, row) for place, row in enumerate(made["objects"].to_pylist())]
    column = made.schema.get_field_index("objects")
    parquet.write_table(made.set_column(column, "objects", pyarrow.array(rows)), file)
    return root


def test_a_table_does_not_say_what_its_boxes_are(tmp_path):
    root = sets.table(tmp_path)
    words = r"does not say what the four numbers of its boxes are \(\[2.0, 3.0, 10.0, 9.0\]\)"
    with pytest.raises(UserError, match=f"{words}; pass --data.box-format xywh"):
        opened(root)


@pytest.mark.parametrize("kind", ["xyxy", "xywh", "cxcywh", "relative-xyxy", "relative-cxcywh"])
def test_every_form_of_boxes(kind, tmp_path):
    def change(place, row):
        width, height = SIZES[place] if kind.startswith("relative") else (1, 1)
        boxes = []
        for left, top, right, bottom in row["bbox"]:
            w, h = right - left, bottom - top
            box = {"xyxy": (left, top, right, bottom), "xywh": (left, top, w, h)}
            box["cxcywh"] = (left + w / 2, top + h / 2, w, h)
            values = box[kind.rpartition("-")[2]]
            sides = zip(values, (width, height) * 2, strict=True)
            boxes.append([value / by for value, by in sides])
        return {"bbox": boxes, "category": row["category"]}

    found = opened(rewritten(tmp_path, change), box_format=kind)
    for index, wanted in enumerate(sets.truth()):
        assert found.objects(index).boxes == pytest.approx(wanted.boxes)
        assert found.read_objects(index)[1].classes.tolist() == wanted.classes.tolist()


def test_words_are_classes_in_their_alphabetical_order(tmp_path):
    found = opened(sets.table(tmp_path, has_names=False, has_words=True), box_format="xyxy")
    assert found.classes == sets.CLASSES
    assert found.objects(3).classes.tolist() == [2, 2, 0]


def test_numbers_alone_are_named_as_such(tmp_path):
    found = opened(sets.table(tmp_path, has_names=False), box_format="xyxy")
    assert found.classes == ("0", "1", "2")


def test_rows_that_are_damaged_are_named(tmp_path):
    def change(place, row):
        return {"bbox": row["bbox"][: place or 1], "category": row["category"]}

    found = opened(rewritten(tmp_path, change), box_format="xyxy")
    sentence = "it has not as many classes as boxes"
    assert [reason for _, reason in found.problems] == [sentence] and len(found) == 3


def test_a_class_without_a_name_is_refused(tmp_path):
    def change(place, row):
        return {"bbox": row["bbox"], "category": [7 for _ in row["bbox"]]}

    with pytest.raises(UserError, match="class 7, and there are names of 3"):
        opened(rewritten(tmp_path, change), box_format="xyxy")


@pytest.mark.parametrize("has_one", [False, True])
def test_no_column_of_objects(has_one, tmp_path):
    root = rewritten(tmp_path, lambda place, row: row if has_one else json.dumps(row))
    told = "The column image .* does not hold" if has_one else "No column .* holds"
    with pytest.raises(UserError, match=f"{told} objects.*--data.label-column"):
        opened(root, box_format="xyxy", label_column="image")


def test_a_set_of_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    from tests.data.images import encode
    from tests.data.scenes.sets import images

    features = datasets.Features({
        "image": datasets.Image(),
        "objects": {
            "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"), 4)),
            "category": datasets.Sequence(datasets.ClassLabel(names=list(sets.CLASSES))),
        },
    })  # fmt: skip
    rows = {
        "image": [{"bytes": encode(image), "path": None} for image in images()],
        "objects": [
            {"bbox": [box for _, box in objects], "category": [name for name, _ in objects]}
            for objects in sets.BOXES
        ],
    }
    made = datasets.Dataset.from_dict(rows, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: made)
    monkeypatch.setattr("limbeck.data.hub._why_unreachable", lambda address: "")
    found = opened("hf:someone/things", box_format="xyxy")
    assert found.classes == sets.CLASSES
    for index, wanted in enumerate(sets.truth()):
        image, objects = found.read_objects(index)
        assert objects.boxes.tolist() == wanted.boxes.tolist()
        assert objects.classes.tolist() == wanted.classes.tolist()
