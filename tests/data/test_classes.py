import logging

import pytest

from limbeck.data.classes import match_classes
from limbeck.errors import UserError
from tests.data.images import MemorySource


def source(classes, labels):
    made = MemorySource([b"x"] * len(labels), labels)
    made.classes = tuple(classes)
    return made


def matched(classes, labels, others):
    found = match_classes(source(classes, labels), tuple(others), "test", "train")
    assert found.classes == tuple(others)
    assert [found.read(index).label for index in range(len(found))] == [
        found.label(index) for index in range(len(found))
    ]
    return [found.classes[found.label(index)] for index in range(len(found))]


def test_the_same_classes_are_left_as_they_are():
    mine = source("ab", [0, 1])
    assert match_classes(mine, ("a", "b"), "test", "train") is mine


def test_names_in_another_order():
    numbers = [str(number) for number in range(12)]
    assert matched(numbers, [2, 10, 11], sorted(numbers)) == ["2", "10", "11"]
    assert matched(["dog", "cat"], [0, 1, 1], ["cat", "dog"]) == ["dog", "cat", "cat"]


def test_numbers_are_matched_as_numbers_and_told(caplog):
    with caplog.at_level(logging.WARNING, logger="limbeck"):
        assert matched(["0", "1", "2"], [1, 2], ["01", "02"]) == ["01", "02"]
        assert matched(["00", "01"], [1, 0], ["0", "1"]) == ["1", "0"]
    assert caplog.text.count("test and train are matched by number") == 2


def test_classes_without_an_image_of_a_counted_table_do_not_matter(caplog):
    with caplog.at_level(logging.WARNING, logger="limbeck"):
        assert matched(["0", "1", "2", "3"], [1, 3], ["1", "3"]) == ["1", "3"]
        assert matched(["1", "2"], [0, 1], ["0", "1", "2", "3"]) == ["1", "2"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("mine", "theirs", "reason"),
    [
        (["a", "b"], ["a", "c"], "different: b, c"),
        (["a"], ["a", "c"], "different: c"),
        (["0", "1"], ["cat", "dog"], "numbers such as '0' against words"),
        (["cat", "dog"], ["0", "1"], "numbers such as '0' against words"),
        (["0", "7"], ["0", "1"], "different: 1, 7"),
        (["01", "1"], ["1", "2"], "different: 01, 2"),
    ],
)
def test_other_classes_are_refused_with_the_reason(mine, theirs, reason):
    with pytest.raises(UserError, match="classes of test are not those of train") as caught:
        match_classes(source(mine, [0, 0, len(mine) - 1]), tuple(theirs), "test", "train")
    assert reason in str(caught.value) and "(different: )" not in str(caught.value)


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(UserError, match="Two classes of test are called 'a'"):
        match_classes(source("aa", [0, 1]), ("a", "b"), "test", "train")
