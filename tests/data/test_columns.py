import json
import logging

import pytest

from limbeck.data.columns import Columns
from limbeck.data.options import DataOptions
from limbeck.errors import UserError

pa = pytest.importorskip("pyarrow")

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def columns(types, features=None, **options):
    schema = pa.schema({"image": IMAGE, **types})
    if features is not None:
        notes = {"info": {"features": features}}
        schema = schema.with_metadata({"huggingface": json.dumps(notes)})
    return Columns(schema, DataOptions(**options), "a.parquet")


@pytest.mark.parametrize(
    ("arrow_type", "values", "classes", "labels"),
    [
        (pa.int8(), [2, 0, 2], ("0", "1", "2"), [2, 0, 2]),
        (pa.string(), ["dog", "cat", "dog"], ("cat", "dog"), [1, 0, 1]),
        (pa.large_string(), ["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (pa.bool_(), [True, False, True], ("False", "True"), [1, 0, 1]),
        (pa.float64(), [1.0, 0.0, 1.0], ("0", "1"), [1, 0, 1]),
        (pa.dictionary(pa.int8(), pa.string()), ["b", "a", "b"], ("a", "b"), [1, 0, 1]),
    ],
)
def test_kinds_of_labels(arrow_type, values, classes, labels):
    found = columns({"label": arrow_type})
    assert found.label == "label" and (found.image, found.field) == ("image", "bytes")
    assert found.read_labels(values)[0] == classes
    assert found.read_labels(values)[1].tolist() == labels


@pytest.mark.parametrize(
    "values", [[0.5, 1.5], [-1, -1], [None, None], [float("nan")] * 2, [10**9, 5 * 10**9]]
)
def test_values_that_are_no_labels_are_told(values, caplog):
    with caplog.at_level(logging.WARNING, logger="limbeck"):
        assert columns({"label": pa.float64()}).read_labels(values) == ((), None)
    assert "The column 'label' is left out as a label" in caplog.text


def test_no_labels_where_none_are_asked_for(caplog):
    found = columns({"label": IMAGE, "class": pa.int8()}, label_column="")
    assert found.label is None and found.read_labels([]) == ((), None) and not caplog.records
    assert found.image == "image" and found.images == ("image", "label")


def test_another_word_in_each_row_is_no_class(caplog):
    with caplog.at_level(logging.WARNING, logger="limbeck"):
        assert columns({"class": pa.string()}).read_labels(["a", "b", "c"]) == ((), None)
    assert "'class' has another word in each row" in caplog.text
    asked = columns({"class": pa.string()}, label_column="class")
    assert asked.read_labels(["a", "b", "c"])[0] == ("a", "b", "c")


@pytest.mark.parametrize(
    "arrow_type",
    [pa.list_(pa.int64()), pa.list_(pa.float32(), 2), pa.large_list(pa.int8()), pa.date32(), IMAGE],
)
def test_a_label_of_another_type_is_named(arrow_type, caplog):
    with caplog.at_level(logging.WARNING, logger="limbeck"):
        found = columns({"label": arrow_type}, image_column="image")
        assert found.label is None and found.read_labels([]) == ((), None)
    (note,) = found.notes
    assert f"The column 'label' holds {arrow_type}, which is no label" in note
    assert [record.message for record in caplog.records] == [note]
    with pytest.raises(UserError, match="not labels"):
        columns({"label": arrow_type}, image_column="image", label_column="label")


def test_integers_go_before_words():
    assert columns({"label": pa.string(), "class_id": pa.int64()}).label == "class_id"
    assert columns({"label": pa.list_(pa.int8()), "cls": pa.string()}).label == "cls"


def test_class_names_of_the_table():
    kind = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    found = columns({"kind": pa.int64()}, {"image": {"_type": "Image"}, "kind": kind})
    assert found.label == "kind" and found.read_labels([1, 0])[0] == ("cat", "dog")
    with pytest.raises(UserError, match="has the class 2, but names of 2 classes"):
        found.read_labels([1, 2])
    numbered = {"kind": {"_type": "ClassLabel", "num_classes": 3}}
    assert columns({"kind": pa.int64()}, numbered).class_names == ("0", "1", "2")


def test_sound_is_no_image():
    features = {"sound": {"_type": "Audio"}, "image": {"_type": "Image"}}
    assert columns({"sound": IMAGE}, features).image == "image"


@pytest.mark.parametrize(
    "notes", ["[", "[]", '{"info": []}', '{"info": {"features": [1]}}', "[" * 5000, "NaN"]
)
def test_notes_that_are_damaged_are_named(notes):
    schema = pa.schema({"image": IMAGE}).with_metadata({"huggingface": notes})
    with pytest.raises(UserError, match=r"schema of a\.parquet"):
        Columns(schema, DataOptions(), "a.parquet")


def test_class_names_that_are_no_names_are_named():
    with pytest.raises(UserError, match=r"column 'kind' in the schema of a\.parquet"):
        columns({"kind": pa.int64()}, {"kind": {"_type": "ClassLabel", "names": [1, {}]}})


def test_two_columns_of_one_name():
    schema = pa.schema([("image", IMAGE), ("label", pa.int64()), ("label", pa.int64())])
    assert Columns(schema, DataOptions(), "x").label is None
    with pytest.raises(UserError, match=r"2 columns 'label'.*--data\.label-column"):
        Columns(schema, DataOptions(label_column="label"), "x")
    schema = pa.schema([("image", IMAGE), ("image", IMAGE)])
    with pytest.raises(UserError, match="No column of the table holds images"):
        Columns(schema, DataOptions(), "x")


def test_what_tables_of_one_set_have_in_common():
    assert columns({"label": pa.int8()}).kind == columns({"label": pa.int64()}).kind
    assert columns({"label": pa.int8()}).kind != columns({"label": pa.string()}).kind
