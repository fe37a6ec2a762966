import json
import logging

import numpy as np
import pytest
from PIL import Image

from limbeck.data.scenes.open import open_both, open_scenes, with_classes
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.published import CITYSCAPES_IDS
from limbeck.data.scenes.scene import SceneSubset
from limbeck.data.source import BadImage
from limbeck.errors import UserError
from limbeck.records import IGNORE
from tests.data.scenes import sets
from tests.recipes.runs import snapshot


def opened(root, **options):
    return open_scenes(str(root), SceneOptions(root=str(root), **options))


def check(scenes, maps):
    assert len(scenes) == 4
    for index, expected in enumerate(maps):
        image, labels = scenes.read_scene(index)
        assert image.shape == (*expected.shape, 3) and labels.dtype == np.uint8
        assert np.array_equal(labels, expected)
        assert np.array_equal(scenes.read_mask(index), expected)
        assert scenes.label(index) is None and scenes.mask_name(index)


@pytest.mark.parametrize("name", sets.THREE_CLASSES)
def test_every_layout_gives_the_same_maps(name, tmp_path):
    """And nothing is written there."""
    write, classes = sets.THREE_CLASSES[name]
    root = write(tmp_path / "set")
    before = snapshot(root)
    scenes = opened(root)
    check(scenes, sets.label_maps())
    assert snapshot(root) == before
    assert bool(scenes.stamp(0)) == (name != "table")  # whose rows would have to be read
    assert scenes.classes == (classes or CITYSCAPES_IDS.names)
    assert scenes.layout


@pytest.mark.parametrize("shape", [sets.outlines, sets.run_lengths, sets.compressed])
def test_coco_gives_the_same_maps(shape, tmp_path):
    scenes = opened(sets.coco(tmp_path, shape))
    check(scenes, sets.label_maps(ignored=0))
    assert scenes.classes == ("background", "road", "car")


@pytest.mark.parametrize("name", sets.TWO_CLASSES)
def test_two_classes_in_every_guise(name, tmp_path):
    scenes = opened(sets.TWO_CLASSES[name](tmp_path))
    check(scenes, sets.two_maps())
    assert scenes.classes == ("background", "foreground")


def test_the_fingerprint_tells_another_mask(tmp_path):
    scenes = opened(sets.parallel(tmp_path))
    first = scenes.fingerprint()
    assert SceneSubset(scenes, [3, 1, 0, 2]).fingerprint() == first
    named = opened(tmp_path, class_names=("sky", "road", "car")).fingerprint()
    part = SceneSubset(scenes, [3, 1, 0]).fingerprint()
    labels = sets.label_maps()[0]
    labels[5:9, 5:9] = 2
    sets.save(tmp_path / "masks/a1.png", labels)
    edited = opened(tmp_path).fingerprint()
    assert len({first, named, part, edited}) == 4 and len(first) == 32
    (tmp_path / "masks/a1.png").unlink()
    assert scenes.stamp(0) == ""


def test_the_fingerprint_tells_another_outline(tmp_path):
    file = sets.coco(tmp_path, sets.outlines) / "instances_default.json"
    first = opened(tmp_path).fingerprint()
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"][0][0] += 1
    file.write_text(json.dumps(content))
    assert opened(tmp_path).fingerprint() != first


def test_what_was_recognised_is_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    opened(sets.parallel(tmp_path))
    assert (
        f"{tmp_path}: folders of images and masks, 4 images with masks (if that is wrong: "
        "--data.layout, --data.masks): images/a1.jpg with masks/a1.png, images/b2.jpg with"
    ) in caplog.text
    values = np.concatenate([labels.ravel() for labels in sets.label_maps()])
    sky, road, car, ignored = (f"{(values == value).mean():.1%}" for value in (0, 1, 2, IGNORE))
    assert (
        "3 classes by the values in the masks (if that is wrong: --data.class-names), in 4 masks: "
        f"0 {sky}, 1 {road}, 2 {car}; ignored {ignored}."
    ) in caplog.text


def test_masks_elsewhere(tmp_path):
    sets.write(tmp_path, "photos/{}.jpg", "elsewhere/{}.png", sets.label_maps())
    root = tmp_path / "photos"
    with pytest.raises(UserError, match=r"no masks in .*photos.*--data.masks"):
        opened(root)
    check(opened(root, masks=str(tmp_path / "elsewhere")), sets.label_maps())
    check(opened(tmp_path, masks="elsewhere"), sets.label_maps())
    with pytest.raises(UserError, match="no folder nowhere"):
        opened(root, masks="nowhere")


def test_names_and_ignored_values_of_options(tmp_path):
    sets.parallel(tmp_path)
    names = ("sky", "road", "car")
    assert opened(tmp_path, class_names=names).classes == names
    scenes = opened(tmp_path, class_names=names, ignore_values=(1,))
    assert scenes.classes == ("sky", "car")
    expected = [sets.recoded(labels, {1: IGNORE, 2: 1}) for labels in sets.label_maps()]
    check(scenes, expected)


def test_background_is_ignored(tmp_path):
    sets.parallel(tmp_path)
    expected = [sets.recoded(m, {0: IGNORE, 1: 0, 2: 1}) for m in sets.label_maps()]
    for names in ((), ("background", "road", "car"), ("road", "car")):
        scenes = opened(tmp_path, ignore_background=True, class_names=names)
        check(scenes, expected)
        assert scenes.classes == (("road", "car") if names else ("1", "2"))


def test_merged_classes(tmp_path):
    sets.colour_table(tmp_path)
    scenes = opened(tmp_path, merge=("ground=sky,road",))
    assert scenes.classes == ("ground", "car")
    check(scenes, [sets.recoded(m, {1: 0, 2: 1}) for m in sets.label_maps()])
    scenes = opened(tmp_path, merge=("ignore=sky",))
    assert scenes.classes == ("road", "car")
    check(scenes, [sets.recoded(m, {0: IGNORE, 1: 0, 2: 1}) for m in sets.label_maps()])
    with pytest.raises(UserError, match=r"no class 'cra'. Did you mean 'car'\?"):
        opened(tmp_path, merge=("x=cra",))


def test_other_names_of_the_layout(tmp_path):
    sets.ade20k(tmp_path)
    scenes = opened(tmp_path, ignore_background=False, class_names=("none", "a", "b", "c"))
    check(scenes, [sets.recoded(m, {IGNORE: 0, 0: 1, 1: 2, 2: 3}) for m in sets.label_maps()])
    with pytest.raises(UserError, match="no folder, and the layout"):
        opened(tmp_path / "objectInfo150.txt", layout="voc")


def bad_set(tmp_path):
    """Of the four the first is fine, and there are ten more so that bad ones are the few."""
    sets.parallel(tmp_path)
    for number in range(10):
        sets.save(tmp_path / f"images/z{number}.jpg", sets.images()[0])
        sets.save(tmp_path / f"masks/z{number}.png", sets.label_maps()[0])
    sets.save(tmp_path / "masks/b2.png", sets.label_maps()[0])
    strange = sets.label_maps()[2]
    strange[5, :3] = 9
    sets.save(tmp_path / "masks/c3.png", strange)
    sets.save(tmp_path / "masks/d4.png", np.full((18, 30), 255, np.uint8))
    sets.save(tmp_path / "images/e5.jpg", sets.images()[0])
    sets.save(tmp_path / "images/f6.jpg", sets.images()[0])
    (tmp_path / "masks/f6.png").write_bytes(b"no picture")
    return tmp_path


PROBLEMS = {
    "images/b2.jpg": "its mask has 24 x 16 pixels, the image 20 x 20",
    "images/c3.jpg": "its mask has the value 9 at 3 pixels, which is no class "
    "(the values are 0, 1, 2, 255)",
    "images/d4.jpg": "its mask has no pixel of a class: all are ignored",
    "images/f6.jpg": "its mask can't be used: not an image file, or of an unknown format",
}


def test_each_problem_has_its_sentence(tmp_path, caplog):
    scenes = opened(bad_set(tmp_path), class_names=("sky", "road", "car"))
    keys = [scenes.key(index) for index in range(len(scenes))]
    assert "images/e5.jpg" not in keys
    assert "1 image (images/e5.jpg) left out: it has no mask." in caplog.text
    found = {}
    for index, key in enumerate(keys):
        for read in (scenes.read_scene, scenes.read_mask):
            try:
                read(index)
            except BadImage as error:
                found[key] = str(error)
    assert found == PROBLEMS


def test_each_problem_is_refused_where_that_is_asked_for(tmp_path):
    names = ("sky", "road", "car")
    with pytest.raises(UserError, match=r"images/e5.jpg it has no mask; .*--data.broken skip"):
        opened(bad_set(tmp_path), class_names=names, broken="refuse")
    (tmp_path / "images/e5.jpg").unlink()
    scenes = opened(tmp_path, class_names=names, broken="refuse")
    for index in range(len(scenes)):
        if reason := PROBLEMS.get(scenes.key(index)):
            with pytest.raises(UserError) as caught:
                scenes.read_scene(index)
            assert reason in str(caught.value)


def test_a_mask_of_a_turned_photo(tmp_path):
    """It was drawn on the upright pixels or on the stored ones, and its size tells."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = sets.label_maps()[2]  # 16 x 24
    stored = np.rot90(upright)  # what a turn by 90 degrees to the right makes upright again
    for name, labels in (("a", upright), ("b", np.ascontiguousarray(stored))):
        sets.save(tmp_path / f"images/{name}.jpg", sets.images()[0], exif=exif)
        sets.save(tmp_path / f"masks/{name}.png", labels)
    scenes = opened(tmp_path)
    for index in range(2):
        image, labels = scenes.read_scene(index)
        assert image.shape == (24, 16, 3)
        assert np.array_equal(labels, upright)
        assert np.array_equal(scenes.read_mask(index), upright)


def test_names_that_do_not_fit_are_refused_at_once(tmp_path):
    sets.parallel(tmp_path)
    with pytest.raises(UserError, match=r"4 of 4 masks don't fit .*the value 2 .*ignore-values"):
        opened(tmp_path, class_names=("sky", "road"))


def test_splits_of_one_place(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train, held_out = open_both(SceneOptions(root=str(sets.of_splits(tmp_path))))
    assert caplog.text.count("if that is wrong: --data.layout") == 1
    assert [note.rpartition(": ")[2] for note in (*train.notes, *held_out.notes)] == [
        "train is taken.", "validation is taken.",
    ]  # fmt: skip
    assert {train.key(i).split("/")[0] for i in range(4)} == {"train"}
    assert {held_out.key(i).split("/")[0] for i in range(4)} == {"val"}
    with pytest.raises(UserError, match="no split 'tset', but train, validation"):
        opened(tmp_path, split="tset")
    assert len(opened(tmp_path, split="train+val")) == 8


def test_a_part_is_held_out_where_there_are_no_splits(tmp_path):
    train, held_out = open_both(SceneOptions(root=str(sets.parallel(tmp_path)), holdout_ratio=0.25))
    assert len(train) + len(held_out) == 4 and len(held_out) >= 1
    keys = {each.key(i) for each in (train, held_out) for i in range(len(each))}
    assert len(keys) == 4 and held_out.classes == train.classes
    assert train.read_scene(0)[1].shape == train.read_mask(0).shape
    half = SceneOptions(root=str(tmp_path), holdout_ratio=0.25, label_fraction=0.34)
    assert len(open_both(half)[0]) == 1


def test_classes_of_two_places_are_matched_by_name(tmp_path):
    one = opened(sets.colour_table(tmp_path / "one"))
    other = opened(sets.parallel(tmp_path / "other"), class_names=("car", "road", "sky"))
    matched = with_classes(other, one.classes, "other", "one")
    assert matched.classes == one.classes
    assert matched.label(0) is None and matched.mask_name(0) == other.mask_name(0)
    expected = [sets.recoded(m, {0: 2, 2: 0}) for m in sets.label_maps()]
    check(matched, expected)
    fourth = (*other.classes[:2], "dog")
    with pytest.raises(UserError, match=r"which has no 'dog' \(it has sky, road, car\)"):
        with_classes(opened(tmp_path / "other", class_names=fourth), one.classes, "other", "one")


def test_coco_by_its_file(tmp_path):
    sets.coco(tmp_path, sets.outlines)
    root = tmp_path / "instances_default.json"
    check(opened(root), sets.label_maps(ignored=0))
    content = json.loads(root.read_text())
    for each in content["annotations"]:
        each["segmentation"] = []
    root.write_text(json.dumps(content))
    with pytest.raises(UserError, match="no masks in the layout coco. .*json has boxes alone"):
        opened(root)


def test_a_folder_without_masks(tmp_path):
    sets.write(tmp_path, "images/{}.jpg", "images/{}.jpg", sets.images())
    with pytest.raises(UserError, match=r"There are no masks in .* pass their folder"):
        opened(tmp_path)
    with pytest.raises(UserError, match="There is no data"):
        opened("")
