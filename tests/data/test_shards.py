import json
import tarfile

import pytest

from limbeck.data.shards import TarSource, open_shards
from limbeck.data.source import BadImage
from limbeck.data.splits import expand_braces
from limbeck.errors import UserError
from tests.data.images import encode, photo, write_shard

IMAGES = [encode(photo(seed=seed)) for seed in range(4)]


def test_expand_braces():
    assert expand_braces("a.tar") == ["a.tar"]
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{x,y}/{0..1}.tar") == ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]


def test_webdataset_samples_with_class_numbers(tmp_path):
    write_shard(
        tmp_path / "s-0.tar",
        [
            ("a/0001.cls", b"1\n"),
            ("a/0001.jpg", IMAGES[0]),
            ("a/0001.seg.png", b"a mask, not an image of its own"),
            ("a/0001.txt", b"a caption"),
            ("b/0001.JPEG", IMAGES[1]),
            ("b/0001.cls", b"0"),
        ],
    )
    write_shard(tmp_path / "s-1.tar", [("a/0001.png", IMAGES[2]), ("a/0001.cls", b"2")])
    source = open_shards(str(tmp_path / "s-{0..1}.tar"), None, "train")
    keys = [source.key(index) for index in range(len(source))]
    assert keys == ["s-0.tar/a/0001.jpg", "s-0.tar/b/0001.JPEG", "s-1.tar/a/0001.png"]
    assert source.classes == ("0", "1", "2")
    assert [source.label(index) for index in range(3)] == [1, 0, 2]
    assert [source.read(index).data for index in range(3)] == IMAGES[:3]


def test_json_labels_and_words(tmp_path):
    members = []
    for number, fields in enumerate([{"label": 3}, {"cls": 0}, {"class": "1"}]):
        members += [
            (f"{number}.jpg", IMAGES[number]),
            (f"{number}.json", json.dumps(fields).encode()),
        ]
    write_shard(tmp_path / "numbers.tar", members)
    source = TarSource([str(tmp_path / "numbers.tar")])
    assert [source.label(index) for index in range(3)] == [3, 0, 1]
    write_shard(
        tmp_path / "words.tar",
        [("0.jpg", IMAGES[0]), ("0.cls", b"dog"), ("1.jpg", IMAGES[1]), ("1.cls", b"cat")],
    )
    source = TarSource([str(tmp_path / "words.tar")])
    assert source.classes == ("cat", "dog") and source.label(0) == 1


def test_a_caption_in_json_is_no_label(tmp_path):
    write_shard(
        tmp_path / "a.tar",
        [("0.jpg", IMAGES[0]), ("0.json", b'{"caption": "x"}'), ("1.json", b"{")],
    )
    source = TarSource([str(tmp_path / "a.tar")])
    assert source.classes == () and source.label(0) is None and source.read(0).label is None


def test_a_caption_beside_a_class_number_leaves_it(tmp_path):
    write_shard(
        tmp_path / "a.tar", [("0.cls", b"4"), ("0.jpg", IMAGES[0]), ("0.json", b'{"url": "x"}')]
    )
    assert TarSource([str(tmp_path / "a.tar")]).label(0) == 4


def test_partly_labelled_is_unlabelled(tmp_path):
    write_shard(tmp_path / "a.tar", [("0.jpg", IMAGES[0]), ("0.cls", b"1"), ("1.jpg", IMAGES[1])])
    source = TarSource([str(tmp_path / "a.tar")])
    assert source.classes == () and source.label(0) is None


def test_folder_of_shards_and_addresses(tmp_path):
    for number in range(2):
        write_shard(tmp_path / f"{number}.tar", [("x.jpg", IMAGES[number])])
    source = open_shards(str(tmp_path), None, "train")
    assert [source.key(index) for index in range(2)] == ["0.tar/x.jpg", "1.tar/x.jpg"]
    remote = open_shards(f"file://{tmp_path}/{{0..1}}.tar", None, "train")
    assert [remote.read(index).data for index in range(2)] == IMAGES[:2]
    assert [remote.key(index) for index in range(2)] == ["0.tar/x.jpg", "1.tar/x.jpg"]


def test_bad_shards_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no shard .*a-0\.tar \(2 of 2"):
        open_shards(str(tmp_path / "a-{0..1}.tar"), None, "train")
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"bad\.tar"):
        TarSource([str(tmp_path / "bad.tar")])
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        archive.add(tmp_path / "bad.tar", "x.jpg")
    with pytest.raises(UserError, match="unpack"):
        TarSource([str(tmp_path / "packed.tar")])
    write_shard(tmp_path / "cut.tar", [("0.jpg", IMAGES[0]), ("1.jpg", IMAGES[1])])
    data = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(IMAGES[0]) + 1200])
    with pytest.raises(UserError, match=r"cut\.tar"):
        TarSource([str(tmp_path / "cut.tar")])
    with pytest.raises(UserError, match="nowhere"):
        TarSource(["nowhere://bucket/a.tar"])


def test_no_images_and_equal_names(tmp_path):
    write_shard(tmp_path / "a.tar", [("0.txt", b"x")])
    with pytest.raises(UserError, match="no images"):
        TarSource([str(tmp_path / "a.tar")])
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        write_shard(folder / "b.tar", [("0.jpg", IMAGES[0])])
    with pytest.raises(UserError, match="same key"):
        TarSource([str(tmp_path / "b.tar"), str(tmp_path / "sub" / "b.tar")])


def test_a_shard_that_vanished_gives_bad_images(tmp_path):
    write_shard(tmp_path / "a.tar", [("0.jpg", IMAGES[0])])
    source = TarSource([str(tmp_path / "a.tar")])
    (tmp_path / "a.tar").unlink()
    with pytest.raises(BadImage, match="can't be read"):
        source.read(0)
