import logging
import pickle

import numpy as np
import pytest

from limbeck.data.source import (
    Names,
    Renumbered,
    Subset,
    label_table,
    no_images,
    plain_label,
)
from limbeck.errors import UserError
from tests.data.images import memory_photos


def test_names_are_given_back_as_they_were():
    words = ["a", "", "ä/ö.jpg", "\udcff", "x" * 300]
    names = pickle.loads(pickle.dumps(Names(words)))
    assert list(names) == words and len(names) == 5
    for beyond in (5, -1):
        with pytest.raises(IndexError):
            names[beyond]
    assert list(Names([])) == []


def test_subset_is_a_source_in_the_given_order():
    source = memory_photos(5, num_classes=2)
    subset = Subset(source, [4, 0, 3])
    assert len(subset) == 3 and subset.classes == source.classes
    assert [subset.key(i) for i in range(3)] == ["image 4", "image 0", "image 3"]
    assert [subset.label(i) for i in range(3)] == [0, 0, 1]
    assert subset.read(2) == source.read(3)


def test_renumbered_is_the_same_source_with_other_labels():
    source = memory_photos(4, num_classes=2)
    other = Renumbered(source, ("class 1", "class 0"), [1, 0])
    for index in range(4):
        assert other.key(index) == source.key(index)
        assert other.classes[other.label(index)] == source.classes[source.label(index)]
        assert other.read(index).data == source.read(index).data
        assert other.read(index).label == other.label(index)


def test_plain_labels():
    values = [3, "cat", True, 2.0, 0.5, float("nan"), float("inf"), None, [1]]
    assert [plain_label(value) for value in values] == [3, "cat", "True", 2, *[None] * 5]


def test_label_table():
    classes, labels = label_table([2, 0, 2])
    assert classes == ("0", "1", "2") and labels.tolist() == [2, 0, 2]
    classes, labels = label_table(["dog", "cat", "dog"])
    assert classes == ("cat", "dog") and labels.tolist() == [1, 0, 1]
    assert labels.dtype == np.int64


@pytest.mark.parametrize("values", [[], [1, None], [None], [-1, -1], [0, 10**9]])
def test_what_is_no_label(values):
    assert label_table(values) == ((), None)


@pytest.mark.parametrize("values", [[1, None, 0], ["a", None, "b"], [0, -1, 2], [0, 10**20, 1]])
def test_missing_labels_are_said(values, caplog):
    with caplog.at_level(logging.WARNING, logger="limbeck"):
        assert label_table(values) == ((), None)
    assert "1 of 3 labels are missing" in caplog.text and "unlabelled" in caplog.text
    with pytest.raises(UserError, match=r"1 of 3 rows of the column 'kind'.*--data\.label-column"):
        label_table(values, "kind")


def test_no_label_at_all_is_nothing_to_warn_of(caplog):
    assert label_table([None, None]) == ((), None) and not caplog.records


def test_mixed_labels_are_refused():
    with pytest.raises(UserError, match="partly numbers"):
        label_table([1, "a"])


def test_no_images_names_the_place():
    assert "/photos" in str(no_images("/photos"))
