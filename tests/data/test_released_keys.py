import pytest

from limbeck.data.released_keys import indices_by_name, indices_by_position
from limbeck.errors import UserError
from tests.data.images import MemorySource


class NamedSource(MemorySource):
    """Samples of these names, without images."""

    def __init__(self, names):
        super().__init__([None] * len(names))
        self.names = names

    def key(self, index):
        return self.names[index]


SOURCE = NamedSource(["cat/c_1.JPEG", "cat/c_10.JPEG", "dog/d_7.v2.png"])


@pytest.mark.parametrize(
    "keys",
    [
        ["cat/c_1.JPEG", "cat/c_10.JPEG", "dog/d_7.v2.png"],
        ["cat/c_1", "cat/c_10", "dog/d_7.v2"],
        ["c_1.JPEG", "c_10.JPEG", "d_7.v2.png"],
        ["c_1", "c_10", "d_7.v2"],
    ],
)
def test_names_are_found_whatever_is_left_of_them(keys):
    found = indices_by_name(SOURCE, iter([keys[2], "e_3", keys[0]]))
    assert found == {keys[2]: 2, keys[0]: 0}


def test_a_name_of_two_images_is_refused():
    source = NamedSource(["cat/1.jpg", "dog/1.jpg"])
    with pytest.raises(UserError, match=r"'1' is the file's name without .*cat/1.jpg and dog/1"):
        indices_by_name(source, ["1"])
    assert indices_by_name(source, ["cat/1", "dog/1"]) == {"cat/1": 0, "dog/1": 1}


def test_names_of_no_image_are_refused():
    with pytest.raises(UserError, match=r"No key \(such as 'e_1'\) names .* 'cat/c_1.JPEG'"):
        indices_by_name(SOURCE, ["e_2", "e_1"])


def test_positions_are_those_of_an_image_folder():
    # In this order the names are sorted; a listing goes through the classes.
    source = NamedSource(["a-b/1.jpg", "a/2.jpg", "a/sub/0.jpg", "a/t.jpg"])
    found = indices_by_position(source, ["3", "0", "1", "2"], "folder")
    assert [source.key(found[str(place)]) for place in range(4)] == [
        "a/2.jpg", "a/t.jpg", "a/sub/0.jpg", "a-b/1.jpg",
    ]  # fmt: skip


def test_positions_in_a_tar_are_by_the_value_of_numbers():
    # As timm's reader of a tar, from which the released one comes, sorts: both lists by hand.
    names = ["b/x_2.jpg", "b/X_10.jpg", "b/x_1.jpg", "a10/0.jpg", "a2/0.jpg", "a2/sub/0.jpg"]
    source = NamedSource(names)

    def listed(listing):
        found = indices_by_position(source, map(str, range(6)), listing)
        return [source.key(found[str(place)]) for place in range(6)]

    assert listed("tar") == [
        "a2/0.jpg", "a2/sub/0.jpg", "a10/0.jpg", "b/x_1.jpg", "b/x_2.jpg", "b/X_10.jpg",
    ]  # fmt: skip
    assert listed("folder") == [
        "a10/0.jpg", "a2/0.jpg", "a2/sub/0.jpg", "b/X_10.jpg", "b/x_1.jpg", "b/x_2.jpg",
    ]  # fmt: skip


def test_positions_of_other_images_are_refused():
    for keys, words in [
        (["0", "1"], "3 images and 2 keys; as"),
        (["0", "1", "2", "3"], "3 images and 4 keys, one of them '3'"),
        (["0", "1", "d"], "3 keys, one of them 'd'"),
        (["1", "2", "3"], "3 keys, one of them '3'"),
        (["00", "1", "2"], "one of them '00'"),
    ]:
        with pytest.raises(UserError, match=words):
            indices_by_position(SOURCE, keys, "folder")
