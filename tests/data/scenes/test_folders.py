import pytest

from limbeck.data.scenes.folders import find_folders
from limbeck.data.scenes.layout import Place
from limbeck.data.scenes.options import SceneOptions
from limbeck.errors import UserError


def pairs(root, *files, split="train", **options):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    found = find_folders(Place(root, SceneOptions(**options), split))
    if found is None:
        return None
    names = {found.images.key(i): found.masks.name(i) for i in range(len(found.images))}
    return names, found.problems, found.notes


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.jpg", "masks/{}.png"),
        ("Images/x/{}.JPG", "Labels/x/{}.PNG"),
        ("images/train/{}.jpg", "annotations/train/{}.png"),
        ("train/images/{}.jpg", "train/masks/{}.png"),
        ("train/{}.png", "trainannot/{}.png"),
        ("train/{}.png", "train_labels/{}.png"),
        ("images/{}.jpg", "labels/{}_P.png"),
        ("images/{}.jpg", "gt/{}_labelIds.png"),
        ("{}.jpg", "{}_mask.gif"),
        ("{}_sat.jpg", "{}_mask.png"),
        ("a/b/{}.jpg", "a/b/{}.mask.png"),
        ("photos/{}_rgb.tif", "photos/{}_label.tif"),
        ("{}.jpg", "SegmentationClass/{}.png"),
        ("whatever/{}.jpg", "masks/deeper/{}.png"),
    ],
)
def test_pairs_by_their_names(image, mask, tmp_path):
    expected = {image.format(name): mask.format(name) for name in ("a", "b")}
    assert pairs(tmp_path, *expected, *expected.values()) == (expected, (), ())


def test_the_same_names_in_several_folders(tmp_path):
    expected = {f"images/{city}/1.jpg": f"masks/{city}/1.png" for city in ("ulm", "bonn")}
    assert pairs(tmp_path, *expected, *expected.values())[0] == expected


def test_the_same_names_in_several_splits(tmp_path):
    of_split = {f"{split}_images/1.jpg": f"{split}_masks/1.png" for split in ("train", "val")}
    assert pairs(tmp_path, *of_split, *of_split.values())[0] == {
        "train_images/1.jpg": "train_masks/1.png"
    }
    found = pairs(tmp_path, split="val")[0]
    assert found == {"val_images/1.jpg": "val_masks/1.png"}


def test_pictures_of_masks_are_no_masks(tmp_path):
    files = ("images/a.png", "masks/a.png", "masks_color/a.png")
    found, _, notes = pairs(tmp_path, *files)
    assert found == {"images/a.png": "masks/a.png"}
    assert notes == (
        "1 further file (masks_color/a.png) of masks that are there already left out.",
    )


def test_what_has_no_partner_is_told(tmp_path):
    found, problems, notes = pairs(
        tmp_path, "images/a.jpg", "images/b.jpg", "masks/a.png", "masks/c.png"
    )
    assert found == {"images/a.jpg": "masks/a.png"}
    assert problems == (("images/b.jpg", "it has no mask"),)
    assert notes == ("1 mask (masks/c.png) without an image left out.",)


def test_no_masks_at_all(tmp_path):
    assert pairs(tmp_path, "images/a.jpg", "cats/b.jpg", "masks/readme.txt") is None
    with pytest.raises(UserError, match=r"No mask in .* an image .*cats/b.jpg, and masks/z.png"):
        pairs(tmp_path, "masks/z.png")


def test_masks_of_other_names(tmp_path):
    with pytest.raises(UserError, match=r"No mask in .*elsewhere has the name of an image"):
        pairs(tmp_path, "images/a.jpg", "elsewhere/b.png", masks="elsewhere")
    (tmp_path / "elsewhere" / "a_gt.png").touch()
    found = pairs(tmp_path, masks="elsewhere")[0]
    assert found == {"images/a.jpg": "a_gt.png"}
