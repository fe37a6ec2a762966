"""VOC's XML files: pixels from 1, difficult objects, sizes, lists of splits."""

import pytest

from limbeck.data.scenes.objects.open import open_both_objects, open_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.errors import UserError
from tests.data.scenes.objects import sets


def opened(root, **options):
    return open_objects(str(root), ObjectOptions(root=str(root), **options))


@pytest.mark.parametrize("size", [sets.SIZE, (0, 0), None])
def test_boxes_begin_at_pixel_one(size, tmp_path):
    source = opened(sets.write_voc(tmp_path, size))
    assert sets.held(source) == sets.EXPECTED
    assert source.classes == sets.NAMES
    assert [source.objects(index).is_crowd.tolist() for index in (0, 2)] == [[False] * 2, [True]]


def test_splits_are_lists(tmp_path):
    root = sets.write_voc(tmp_path)
    lists = root / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\n")
    train, held_out = open_both_objects(ObjectOptions(root=str(root)))
    assert [train.key(index) for index in range(2)] == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]
    assert len(held_out) == 1 and held_out.classes == sets.NAMES


def test_what_is_wrong_is_said(tmp_path):
    root = sets.write_voc(tmp_path)
    (root / "JPEGImages/b.jpg").unlink()
    assert opened(root).problems == (("Annotations/b.xml", "its image is not there"),)
    file = root / "Annotations/a.xml"
    text = file.read_text()
    file.write_text(text.replace("<xmin>11</xmin>", "<xmin>eleven</xmin>"))
    with pytest.raises(UserError, match="'bndbox/xmin' of an object in .* is 'eleven', no number"):
        opened(root)
    file.write_text(text.replace("</annotation>", ""))
    with pytest.raises(UserError, match="is damaged"):
        opened(root)
