import pytest

from limbeck.data.scenes.layout import Place
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.published import VOC
from limbeck.data.scenes.voc import find_voc
from limbeck.errors import UserError
from tests.data.scenes import sets


def found(root, split="train"):
    return find_voc(Place(root, SceneOptions(), split))


def test_splits_are_lists(tmp_path):
    assert found(tmp_path) is None
    sets.voc(tmp_path / "set")
    assert len(found(tmp_path / "set").images) == 4
    part = found(tmp_path / "set", "validation")
    assert [part.images.key(i) for i in range(len(part.images))] == [
        "VOCdevkit/VOC2012/JPEGImages/a1.jpg"
    ]
    assert part.splits == ("train", "validation")


def test_what_a_list_names_and_is_not_there(tmp_path):
    sets.voc(tmp_path)
    top = tmp_path / "VOCdevkit" / "VOC2012"
    (top / "SegmentationClass" / "b2.png").unlink()
    (top / "JPEGImages" / "c3.jpg").unlink()
    assert found(tmp_path).problems == (
        ("VOCdevkit/VOC2012/JPEGImages/b2.jpg", "it has no mask"),
        ("c3", "it is not there"),
    )


def test_without_lists_images_without_masks_are_for_something_else(tmp_path):
    masks = [sets.with_palette(labels) for labels in sets.label_maps()]
    sets.write(tmp_path, "JPEGImages/2007_00000{}.jpg", "SegmentationClass/2007_00000{}.png", masks)
    sets.save(tmp_path / "JPEGImages/more.jpg", sets.images()[0])
    all_ = found(tmp_path)
    assert len(all_.images) == 4 and not all_.problems and all_.table is None
    for name in sets.NAMES:
        for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            file = tmp_path / folder / f"2007_00000{name}.{suffix}"
            file.rename(file.with_stem(f"2007_00000{ord(name[0]) % 10}"))
    assert found(tmp_path).table is VOC


def test_two_sets_are_refused(tmp_path):
    sets.voc(tmp_path / "x")
    sets.voc(tmp_path / "y")
    with pytest.raises(UserError, match="several sets of VOC's layout"):
        found(tmp_path)
