import logging

import pytest

from limbeck.data.splits import (
    choose_split,
    expand_braces,
    expand_pattern,
    find_files,
    is_packed_name,
    is_pattern,
    split_of,
    splits_of,
)
from limbeck.errors import UserError


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/test-00000-of-00001-0a1b2c.parquet", "test"),
        ("cifar10-validation.arrow", "validation"),
        ("plain_text/val/0000.parquet", "validation"),
        ("TRAIN.TAR", "train"),
        ("birds_test_03.tar", "test"),
        ("dev.parquet", "validation"),
        ("eval-1.parquet", "test"),
        ("contest-01.tar", None),
        ("photos/part-of-it.tar", None),
        ("latest.parquet", None),
        ("0001.tar", None),
    ],
)
def test_the_split_of_a_name(name, split):
    assert split_of(name) == split


def test_files_of_one_kind_are_not_split():
    for names in (["a.tar", "b.tar"], ["test-0.tar", "test-1.tar"], ["train-0.tar", "more.tar"]):
        assert splits_of(names) == {}
    assert splits_of(["train.tar", "test.tar"]) == {"train": ["train.tar"], "test": ["test.tar"]}
    # What has no word is trained on beside a test set, and nobody's beside a training set.
    assert splits_of(["a.tar", "test.tar"]) == {"train": ["a.tar"], "test": ["test.tar"]}
    assert splits_of(["a.tar", "train.tar", "val.tar"])[""] == ["a.tar"]


def listed(*names):
    return [(name, name) for name in names]


def test_what_is_left_out_of_a_folder_is_told_once(tmp_path, caplog):
    for name in ("a.tar", "b.parquet", "c.csv", "d.CSV", "x/preview.png", ".git/e.tar", ".f.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    notes = []
    with caplog.at_level(logging.INFO, logger="limbeck"):
        (found,) = find_files(str(tmp_path), lambda name: name.endswith(".tar"), notes)
    assert found[1] == "a.tar"
    assert notes[:2] == [
        "1 image (x/preview.png) beside tables or shards left out.",
        "3 other files (.csv 2, .parquet 1) left out.",
    ]
    assert "2 hidden files and folders" in notes[2] and len(notes) == 3
    assert [record.message for record in caplog.records] == notes


def test_a_split_is_chosen_and_the_others_are_told(caplog):
    files = listed("train-0.tar", "train-1.tar", "val.tar", "test.tar", "odd.tar")
    with caplog.at_level(logging.WARNING, logger="limbeck"):
        assert choose_split(files, "train", "x", notes := []) == files[:2]
    assert [record.message for record in caplog.records] == notes
    assert "train is taken (2 of 5 files)" in caplog.text
    assert "validation 1, test 1, of no split 1" in caplog.text
    assert choose_split(files, "valid", "x") == [files[2]]
    assert choose_split(files, "train+test", "x") == [*files[:2], files[3]]
    with pytest.raises(UserError, match=r"no files of a split 'tst'.* Did you mean 'test'\?"):
        choose_split(files, "tst", "x")


def test_all_splits_leave_nothing_out(caplog):
    files = listed("train.tar", "test.tar")
    with caplog.at_level(logging.WARNING, logger="limbeck"):
        assert choose_split(files, "train+test", "x") == files
    assert not caplog.records


def test_expand_braces():
    assert expand_braces("a.tar") == ["a.tar"]
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{x,y}/{0..1}.tar") == ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]


@pytest.mark.parametrize("braces", ["{0..999999999999}", "{9..1}", "{0..9999}{0..9999}"])
def test_braces_that_stand_for_nothing_or_for_too_much(braces):
    with pytest.raises(UserError, match=r"The pattern .* names; correct the numbers"):
        expand_braces(f"a-{braces}.tar")


def test_patterns(tmp_path):
    for name in ("b-1.tar", "b-0.tar", "c-0.tar", "sub/d.tar", "is{it}.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert is_pattern(f"{tmp_path}/*.tar") and not is_pattern(f"{tmp_path}/is{{it}}.tar")
    found = expand_pattern(f"{tmp_path}/{{c,b}}-?.tar")
    assert [name.rpartition("/")[2] for name in found] == ["c-0.tar", "b-0.tar", "b-1.tar"]
    names = [name for _, name in find_files(f"{tmp_path}/**/[bd]*.tar", bool)]
    assert names == ["b-0.tar", "b-1.tar", "sub/d.tar"]
    with pytest.raises(UserError, match="No file is called"):
        expand_pattern(f"{tmp_path}/z*.tar")


def test_files_of_a_folder_or_alone(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("sub/a.tar", "b.txt"):
        (tmp_path / name).touch()
    assert find_files(str(tmp_path), lambda name: name.endswith(".tar")) == [
        (tmp_path / "sub" / "a.tar", "sub/a.tar")
    ]
    assert find_files(str(tmp_path / "b.txt"), bool) == [(tmp_path / "b.txt", "b.txt")]


def test_compressed_names():
    assert is_packed_name("A.TAR.GZ") and is_packed_name("a.tgz") and not is_packed_name("a.tar")
