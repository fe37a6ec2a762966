import pytest

from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.shards import find_in_shards
from limbeck.errors import UserError
from tests.data.images import encode, photo, write_shard


def members(name, *parts):
    return [(f"{name}.{part}", encode(photo(), "PNG")) for part in ("jpg", *parts)]


def test_samples_without_a_mask_are_named(tmp_path):
    write_shard(tmp_path / "a.tar", [*members("x", "seg.png"), *members("y", "cls")])
    (tmp_path / "classes.txt").write_text("a\nb")
    found = find_in_shards(str(tmp_path), SceneOptions(), "train")
    assert len(found.images) == 1 and found.images.key(0) == "a.tar/x.jpg"
    assert found.problems == (("a.tar/y.jpg", "it has no mask"),)
    assert found.table.names == ("a", "b") and found.masks.name(0) == "the mask beside it"
    assert not any("belong to an image" in note for note in found.notes)


def test_no_masks(tmp_path):
    write_shard(tmp_path / "a.tar", members("x", "depth.png"))
    with pytest.raises(UserError, match=r"No sample .* has a mask; .*: a\.tar/x\.seg\.png\."):
        find_in_shards(str(tmp_path / "a.tar"), SceneOptions(), "train")
