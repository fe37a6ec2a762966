import pytest

from limbeck.data.scenes.objects.source import ObjectSubset, RenumberedObjects
from limbeck.errors import UserError
from tests.data.scenes.objects import sets
from tests.data.scenes.objects.test_open import opened


@pytest.fixture
def source(tmp_path):
    return opened(sets.coco(tmp_path))


def test_a_subset_is_of_its_source(source):
    part = ObjectSubset(source, [3, 0])
    assert [part.key(0), part.label(0), len(part)] == ["images/d4.jpg", None, 2]
    assert part.objects(0).classes.tolist() == [2, 2, 0]
    assert part.stamp(1) == source.stamp(0) != source.stamp(1)
    assert part.fingerprint() == ObjectSubset(source, [0, 3]).fingerprint() != source.fingerprint()


def test_classes_are_renumbered_by_their_names(source):
    found = RenumberedObjects(source, ("person", "x", "dog", "car"), "there", "here")
    assert found.objects(3).classes.tolist() == [0, 0, 3]
    assert found.read_objects(2)[1].classes.tolist() == []
    with pytest.raises(UserError, match="no 'dog'"):
        RenumberedObjects(source, ("person", "car"), "there", "here")


def test_a_moved_box_is_another_fingerprint(source, tmp_path):
    file = tmp_path / "instances_default.json"
    file.write_text(file.read_text().replace("[2, 3, 8, 6]", "[2, 3, 8, 5]"))
    assert opened(tmp_path).fingerprint() != source.fingerprint()
