import numpy as np
import pytest

from limbeck.data.scenes.describe import describe, troubles
from limbeck.data.scenes.open import open_scenes
from limbeck.data.scenes.options import SceneOptions
from limbeck.records import IGNORE
from tests.data.scenes import sets
from tests.data.scenes.test_open import PROBLEMS, bad_set


@pytest.mark.parametrize("num_workers", [0, 2])
def test_counts_examples_and_problems(num_workers, tmp_path):
    options = SceneOptions(root=str(bad_set(tmp_path)), class_names=("sky", "road", "car", "dog"))
    scenes = open_scenes(options.root, options)
    told = []
    report = describe(scenes, num_workers, lambda done, number: told.append((done, number)))
    good = [scenes.read_mask(i) for i in range(len(scenes)) if scenes.key(i) not in PROBLEMS]
    counts = sum(np.bincount(labels.ravel(), minlength=256) for labels in good)
    assert report.num_scenes == len(good) == 11
    assert report.pixels == {n: counts[c] for c, n in enumerate(("sky", "road", "car", "dog"))}
    assert report.scenes == {"sky": 11, "road": 11, "car": 11, "dog": 0}
    assert report.num_ignored == counts[IGNORE]
    assert report.sizes == ((24, 16), (24, 16))
    assert report.examples[0] == ("images/a1.jpg", "masks/a1.png") and len(report.examples) == 5
    sentences = {**PROBLEMS}
    sentences["images/c3.jpg"] = sentences["images/c3.jpg"].replace("2, 255", "2, 3, 255")
    assert dict(report.bad) == sentences
    assert report.left_out == (("images/e5.jpg", "it has no mask"),)
    assert told[-1] == (len(scenes), len(scenes))


def test_what_people_read(tmp_path):
    options = SceneOptions(root=str(bad_set(tmp_path)), class_names=("sky", "road", "car", "dog"))
    report = describe(open_scenes(options.root, options), 0)
    lines = list(report.lines())
    assert lines[:2] == [
        "scenes      11 of 4 classes, recognised as folders of images and masks (if that is wrong: "
        "--data.layout, --data.masks)",
        "example     images/a1.jpg with masks/a1.png",
    ]
    whole = sum(report.pixels.values())
    assert lines[-6:] == [
        "size        24 x 16 to 24 x 16 px",
        *(
            f"class       {name}: {100 * report.pixels[name] / whole:.1f} % of the pixels, in 11 "
            "scenes"
            for name in ("sky", "road", "car")
        ),
        "class       dog: 0.0 % of the pixels, nowhere",
        "ignored     6.2 % of all pixels (--data.ignore-values, --data.merge)",
    ]
    assert report.absent() == ["dog"] and report.rare() == []


def test_each_kind_of_trouble_is_said_once():
    sizes = [(f"{n}.jpg", f"its mask has {n} x 9 pixels, the image 9 x 9") for n in range(13)]
    assert list(troubles([("x.jpg", "it has no mask"), *sizes])) == [
        "bad         0.jpg: its mask has 0 x 9 pixels, the image 9 x 9",
        "            likewise 12 others: "
        + ", ".join(f"{n}.jpg" for n in range(1, 11))
        + " and 2 more",
        "bad         x.jpg: it has no mask",
    ]


def test_a_rare_class(tmp_path):
    labels = np.zeros((100, 100), np.uint8)
    labels[0, :3] = 1
    for name in "ab":
        sets.save(tmp_path / f"images/{name}.png", np.zeros((100, 100, 3), np.uint8))
        sets.save(tmp_path / f"masks/{name}.png", labels)
    assert describe(open_scenes(str(tmp_path), SceneOptions()), 0).rare() == ["foreground"]
