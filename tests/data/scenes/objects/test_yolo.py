"""YOLO's text files: folders of all kinds, names, rows, and what is wrong with them."""

import pytest

from limbeck.data.scenes.objects.open import open_both_objects, open_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.errors import UserError
from tests.data.scenes.objects import sets


def opened(root, **options):
    return open_objects(str(root), ObjectOptions(root=str(root), **options))


def test_roboflows_folders(tmp_path):
    root = sets.write_yolo(tmp_path, ("train", "test"))
    train, held_out = open_both_objects(ObjectOptions(root=str(root)))
    assert train.classes == held_out.classes == sets.NAMES
    assert sets.held(train) == sets.held(held_out) == sets.EXPECTED
    assert train.key(0) == "train/images/a.jpg" and held_out.key(0) == "test/images/a.jpg"


@pytest.mark.parametrize(
    "yaml",
    [
        "path: .\ntrain: train/images\nnames: [cat, dog, emu]\n",
        "train: [train/images]\nnames: {0: cat, 1: dog, 2: emu}\n",
        "train: list.txt\nnames: [cat, dog, emu]\n",
    ],
)
def test_images_are_a_folder_a_list_or_a_text(yaml, tmp_path):
    root = sets.write_yolo(tmp_path, yaml=yaml)
    names = [f"./train/images/{name}" for name in sets.BOXES]
    (root / "list.txt").write_text("\n".join(names) + "\n")
    assert sets.held(opened(root)) == sets.EXPECTED
    assert sets.held(opened(root / "data.yaml")) == sets.EXPECTED


def test_rows_of_boxes_and_outlines(tmp_path):
    root = sets.write_yolo(tmp_path)
    file = root / "train/labels/b.txt"
    file.write_text(
        "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5\n\n1 0 0 0.5 0 0.5 0.5\n2 0.5 0.5 1.005 1.0\n"
    )
    source = opened(root)
    assert sets.held(source)["b.jpg"] == [
        ("cat", (15.0, 10.0, 45.0, 30.0)),
        ("dog", (0.0, 0.0, 30.0, 20.0)),
        ("emu", (0.0, 0.0, 60.0, 40.0)),
    ]
    assert source.objects(1).shapes[1] == [[0, 0, 30, 0, 30, 20]]
    assert dict(source.problems) == {"train/images/b.jpg": "1 boxes that it has twice are left out"}


def test_bad_rows_are_named(tmp_path):
    root = sets.write_yolo(tmp_path)
    file = root / "train/labels/b.txt"
    file.write_text("0 0.5 0.5 0.5\n0 100 100 20 20\n0 a b c d\n")
    said = [reason for key, reason in opened(root).problems]
    assert said == [
        "a line of its labels is no box and no outline (1)",
        "a line of its labels is not in parts of the image (2)",
        "a line of its labels is no row of numbers (3)",
    ]
    file.write_text("3 0.5 0.5 0.5 0.5\n")
    with pytest.raises(UserError, match="has the class 3 in line 1, and there are 3 names"):
        opened(root)


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("nc: 3\ntrain: train/images\n", "no names of classes"),
        ("names: {1: cat, 2: dog}\ntrain: train/images\n", "not numbered 0, 1"),
        ("names: [cat, cat, dog]\ntrain: train/images\n", "two classes alike"),
        ("names: [cat, dog, emu]\n", "names no images"),
        ("names: [cat, dog, emu]\ntrain: gone\n", "names 'gone', and neither"),
    ],
)
def test_bad_lists_are_refused(yaml, words, tmp_path):
    root = sets.write_yolo(tmp_path, yaml=yaml)
    with pytest.raises(UserError, match=words):
        opened(root)


def test_a_file_that_is_none(tmp_path):
    root = sets.write_yolo(tmp_path)
    (root / "x.yaml").write_text("a: [")
    assert len(opened(root)) == 3  # one of another program
    with pytest.raises(UserError, match="is no YAML"):
        opened(root / "x.yaml")
