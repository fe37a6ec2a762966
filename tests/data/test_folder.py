import logging
import os

import pytest

from limbeck.data.folder import FolderSource
from limbeck.data.formats import is_image_name
from limbeck.data.source import BadImage
from limbeck.errors import UserError
from tests.data.images import write_photos


def keys(source):
    return [source.key(index) for index in range(len(source))]


def test_class_folders_are_labels(tmp_path):
    write_photos(tmp_path, ["dog/b.jpg", "cat/x/a.JPEG", "dog/a.png", "cat/c.webp"])
    source = FolderSource(tmp_path)
    assert keys(source) == ["cat/c.webp", "cat/x/a.JPEG", "dog/a.png", "dog/b.jpg"]
    assert source.classes == ("cat", "dog")
    assert [source.label(index) for index in range(4)] == [0, 0, 1, 1]
    assert source.read(2).label == 1
    assert source.read(2).data == (tmp_path / "dog/a.png").read_bytes()


@pytest.mark.parametrize(
    "names", [["a.jpg", "b.jpg"], ["one/a.jpg", "one/b.jpg"], ["one/a.jpg", "two/b.jpg", "c.jpg"]]
)
def test_other_folders_are_unlabelled(tmp_path, names):
    write_photos(tmp_path, names)
    source = FolderSource(tmp_path)
    assert source.classes == () and keys(source) == sorted(names)
    assert source.label(0) is None and source.read(0).label is None


def test_other_files_are_told_and_hidden_ones_left_out(tmp_path, caplog):
    write_photos(tmp_path, ["a.jpg", ".b.jpg", ".hidden/c.jpg", "b/._d.jpg"])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "b" / "table.csv").write_text("no image")
    (tmp_path / "b" / "more.CSV").write_text("no image")
    (tmp_path / "dangling").symlink_to("nowhere.jpg")
    with caplog.at_level(logging.INFO, logger="limbeck"):
        source = FolderSource(tmp_path)
    assert keys(source) == ["a.jpg"]
    assert "4 other files (.csv 2, .txt 1, no suffix 1) left out." in source.notes
    assert "3 hidden files and folders" in source.notes[-1] and source.notes[-1] in caplog.text


@pytest.mark.parametrize("names", [("Train", "val"), ("testing", "train", "valid")])
def test_splits_are_no_classes(tmp_path, names):
    write_photos(tmp_path, [f"{name}/cat/a.jpg" for name in names])
    pair = rf"{tmp_path}/[Tt]rain as --data and {tmp_path}/{names[-1]} as --data\.eval-root"
    with pytest.raises(UserError, match=pair):
        FolderSource(tmp_path)
    write_photos(tmp_path, ["cat/a.jpg"])
    assert len(FolderSource(tmp_path).classes) == len(names) + 1


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    write_photos(tmp_path, ["data/a/1.jpg", "elsewhere/2.jpg"])
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    source = FolderSource(tmp_path / "data")
    assert keys(source) == ["a/1.jpg", "b/2.jpg"] and source.classes == ("a", "b")


def test_names_that_are_not_utf8(tmp_path):
    write_photos(tmp_path, ["a.jpg"])
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")
    os.rename(tmp_path / "a.jpg", odd)
    source = FolderSource(tmp_path)
    assert source.read(0).data


def test_a_file_that_vanished_is_a_bad_image(tmp_path):
    write_photos(tmp_path, ["a.jpg"])
    source = FolderSource(tmp_path)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(BadImage, match="No such file"):
        source.read(0)


def test_no_images(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="no images in"):
        FolderSource(tmp_path)


def test_image_names():
    assert is_image_name("a/b.JPG") and is_image_name("b.tiff")
    assert not is_image_name("jpg") and not is_image_name("a.jpg.txt")
