import logging
import os
import re
import socket
import subprocess
from collections import Counter

import pytest

from limbeck.data.folder import (
    SPLIT_OF,
    FolderSource,
    is_of_other_programs,
    note_passed,
    walk,
)
from limbeck.data.formats import heif_plugin
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


def test_every_word_for_a_split_is_no_class(tmp_path):
    for word, split in SPLIT_OF.items():
        root = tmp_path / word
        other = "Test" if split == "train" else "Train"
        write_photos(root, [f"{name}/a.jpg" for name in (word, other)])
        train, held_out = (word, other) if split == "train" else (other, word)
        pair = rf"{root}/{train} as --data and {root}/{held_out} as --data\.eval-root"
        with pytest.raises(UserError, match=rf"are splits \(.*{pair}"):
            FolderSource(root)


def test_what_is_of_other_programs():
    for path in ("__MACOSX/x.jpg", "a/@eaDir/x.jpg", ".thumbs/x.jpg", "a/._x.jpg", "$RECYCLE.BIN"):
        assert is_of_other_programs(path.split("/"))
    for path in ("./x.jpg", "../x.jpg", "/x.jpg", "tmp/recycle/x.jpg"):
        assert not is_of_other_programs(path.split("/"))


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


def test_folders_of_other_programs_are_no_classes(tmp_path):
    write_photos(tmp_path, ["cat/a.jpg", "cat/@eaDir/a.jpg/T.jpg", "dog/b.jpg", "dog/Thumbs.db"])
    others = ["@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found", ".thumbnails"]
    write_photos(tmp_path, [f"{name}/cat/c.jpg" for name in others])
    source = FolderSource(tmp_path)
    assert keys(source) == ["cat/a.jpg", "dog/b.jpg"] and source.classes == ("cat", "dog")
    assert "1 other file (.db 1) left out." in source.notes
    assert "7 hidden files and folders, or those of other programs" in source.notes[-1]
    assert "@eaDir 2" in source.notes[-1]


@pytest.mark.parametrize(
    ("names", "empty", "said"),
    [
        (["cat/a.jpg", "dog/b.jpg", "cover.jpg"], [], r"1 image \(cover\.jpg\) beside the folders"),
        (["x/cat/a.jpg", "x/dog/b.jpg"], [], r"one folder x, .*\(cat, dog\) as classes pass .*/x "),
        (["cat/a.jpg", "cat/b.jpg"], ["dog"], r"1 folder \(dog\) without images: no class"),
        (["cat/a.jpg", "cat/b.jpg"], [], "one folder cat: one class is none; no labels"),
        (["cat/a.jpg", "dog/b.jpg"], ["emu", "fox"], r"2 folders \(emu, fox\) without images"),
    ],
)
def test_who_loses_labels_is_told_why(tmp_path, names, empty, said, caplog):
    write_photos(tmp_path, names)
    for name in empty:
        (tmp_path / name).mkdir()
    with caplog.at_level(logging.INFO, logger="limbeck"):
        source = FolderSource(tmp_path)
    assert keys(source) == sorted(names)
    assert bool(source.classes) == ({"cat", "dog"} == {name.partition("/")[0] for name in names})
    assert any(re.search(said, note) for note in source.notes)
    assert all(caplog.text.count(note) == 1 for note in source.notes)


def test_nothing_to_say_of_a_plain_folder(tmp_path):
    write_photos(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "empty").mkdir()
    assert FolderSource(tmp_path).notes == ()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.heic", r"1 HEIC photo \(\.heic 1\) left out; to use them: pip install pillow-heif"),
        ("a.MOV", r"1 video \(\.mov 1\) left out; to use their frames: ffmpeg"),
        ("a", r"1 file \(a\) without a suffix left out, among them images \(JPEG\)"),
        ("a.jpg_large", r"1 other file \(\.jpg_large 1\) left out"),
    ],
)
def test_a_folder_of_what_is_not_read_says_what_to_do(tmp_path, monkeypatch, name, said):
    monkeypatch.setattr("limbeck.data.formats.HEIF_PLUGINS", ())
    heif_plugin.cache_clear()
    write_photos(tmp_path, [name])
    with pytest.raises(UserError, match=f"no images in .*{said}"):
        FolderSource(tmp_path)
    heif_plugin.cache_clear()


def test_what_is_no_regular_file_is_a_bad_image(tmp_path):
    write_photos(tmp_path, ["a.jpg"])
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "me.jpg").symlink_to("me.jpg")
    (tmp_path / "one.jpg").symlink_to("other.jpg")
    (tmp_path / "other.jpg").symlink_to("one.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    with open(tmp_path / "giant.jpg", "wb") as stream:
        stream.truncate(2**40)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket.jpg"))
        source = FolderSource(tmp_path)
        reasons = {}
        for index, key in enumerate(keys(source)):
            try:
                source.read(index)
            except BadImage as error:
                reasons[key] = str(error)
    assert len(source) == 8 and set(reasons) == set(keys(source)) - {"a.jpg"}
    assert "named pipe" in reasons["pipe.jpg"] and "a device" in reasons["zero.jpg"]
    assert "over the limit" in reasons["giant.jpg"] and "symbolic links" in reasons["me.jpg"]


def test_a_link_to_itself_is_no_folder(tmp_path):
    write_photos(tmp_path, ["cat/a.jpg", "dog/b.jpg"])
    (tmp_path / "me").symlink_to("me")
    assert FolderSource(tmp_path).classes == ("cat", "dog")


def test_a_deep_folder_is_walked(tmp_path):
    """Deeper than Python may call itself, and at last than a path may be long."""
    write_photos(tmp_path, ["a/b.jpg", "c.jpg"])
    here = os.open(tmp_path / "a", os.O_RDONLY)
    for level in range(1115):
        name = "d" * (1 if level < 1100 else 200)
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    passed = Counter()
    assert sorted(walk(tmp_path, passed)) == ["a/b.jpg", "c.jpg"]
    assert passed == {"a path that is too long": 1}
    (note,) = note_passed(passed)
    assert note.startswith("1 folder of a path that is too long") and "move it up" in note
    subprocess.run(["rm", "-rf", str(tmp_path / "a")], check=True)  # Python's own way recurs
