import pytest

from limbeck.data.scenes.layout import Place, split_in
from limbeck.data.scenes.options import SceneOptions
from limbeck.errors import UserError


def test_splits_by_folders_alone():
    assert split_in("images/val/train_station.jpg") == "validation"
    assert split_in("Training/images/x.jpg") == "train"
    assert split_in("images/test.jpg") is None


def test_splits_are_chosen_where_there_are_several(tmp_path):
    place = Place(tmp_path, SceneOptions(), "val+test")
    is_taken = place.choose(["train", "validation", "test", None])
    assert [is_taken(split) for split in ("train", "validation", "test", None)] == [0, 1, 1, 0]
    assert place.notes == [
        f"{tmp_path} holds test, train, validation: val+test is taken. 1 of no split left out."
    ]
    assert place.choose(["train", None])("train")
    with pytest.raises(UserError, match="has no split 'validation', but test, train"):
        place.choose(["train", "test"])


def test_the_json_files_of_a_place(tmp_path):
    (tmp_path / "a.json").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.JSON").touch()
    assert Place(tmp_path, SceneOptions(), "train").json_names == ["a.json", "b/c.JSON"]
    place = Place(tmp_path, SceneOptions(), "train", json_name="a.json")
    assert place.json_names == ["a.json"]
