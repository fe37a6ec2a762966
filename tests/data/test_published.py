"""The published files, in tiny: CIFAR-10-C's arrays and ImageNet-C's folders."""

import io

import numpy as np
import pytest
from PIL import Image

from limbeck.data.published import open_published
from limbeck.data.source import BadImage
from limbeck.errors import UserError
from tests.data.images import write_photos

NAMES = ("fog", "snow")
CLASSES = ("ant", "bee", "cow")


def write_arrays(root, num_images=6):
    """Every pixel of an image is ten times its severity plus its number."""
    root.mkdir()
    values = [10 * severity + index for severity in range(1, 6) for index in range(num_images)]
    images = np.array(values, np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    for name in NAMES:
        np.save(root / f"{name}.npy", images + (100 if name == "snow" else 0))
    np.save(root / "labels.npy", np.tile(np.arange(num_images) % 3, 5).astype(np.uint8))
    return root


def write_folders(root, below="", classes=CLASSES):
    for name in NAMES:
        for severity in (1, 3):
            names = [f"{folder}/{number}.jpg" for folder in classes for number in range(2)]
            write_photos(root / below / name / str(severity), names)
    return root


def opened(root, names=NAMES, severities=(1, 3), classes=CLASSES, num_images=100):
    return open_published(str(root), names, severities, classes=classes, num_images=num_images)


def pixel(source, index):
    return int(np.array(Image.open(io.BytesIO(source.read(index).data)))[0, 0, 0])


def test_arrays_hold_one_severity_after_the_other(tmp_path):
    sources = opened(write_arrays(tmp_path / "c"))
    assert list(sources) == [("fog", 1), ("fog", 3), ("snow", 1), ("snow", 3)]
    for (name, severity), source in sources.items():
        assert len(source) == 6 and source.classes == ("0", "1", "2")
        for index in range(6):
            number = int(source.key(index))
            added = 100 if name == "snow" else 0
            assert pixel(source, index) == 10 * severity + number + added
            assert source.label(index) == source.read(index).label == number % 3


@pytest.mark.parametrize("below", ["", "weather"])
def test_folders(tmp_path, below):
    sources = opened(write_folders(tmp_path / "c", below), classes=("ant", "bee", "cow", "dog"))
    for (name, severity), source in sources.items():
        assert len(source) == 6
        for index in range(6):
            folder, _, number = source.key(index).partition("/")
            file = tmp_path / "c" / below / name / str(severity) / folder / number
            assert source.read(index).data == file.read_bytes()
            assert CLASSES[source.label(index)] == folder


@pytest.mark.parametrize("write", [write_arrays, write_folders])
def test_the_same_images_under_every_condition(tmp_path, write):
    sources = opened(write(tmp_path / "c"), num_images=3)
    keys = [[source.key(index) for index in range(len(source))] for source in sources.values()]
    labels = [[source.label(index) for index in range(3)] for source in sources.values()]
    assert len(keys[0]) == 3 and all(each == keys[0] for each in keys)
    assert sorted(labels[0]) == [0, 1, 2] and all(each == labels[0] for each in labels)


def test_classes_that_are_numbers_are_those_of_the_folders_in_order(tmp_path):
    sources = opened(write_folders(tmp_path / "c"), classes=("0", "1", "2"))
    source = sources["fog", 1]
    assert all(CLASSES[source.label(i)] == source.key(i)[:3] for i in range(len(source)))


def test_a_file_that_goes_is_a_bad_image(tmp_path):
    source = opened(write_folders(tmp_path / "c"))["snow", 3]
    (tmp_path / "c" / "snow" / "3" / source.key(0)).unlink()
    with pytest.raises(BadImage, match="can't be read"):
        source.read(0)


def lose(path):
    return lambda root: (root / path).unlink()


@pytest.mark.parametrize(
    ("write", "spoil", "message"),
    [
        (write_arrays, lose("fog.npy"), "lacks fog.npy; complete it, or name what it has with --"),
        (write_arrays, lose("labels.npy"), "lacks labels.npy"),
        (write_folders, lose("snow/3/bee/0.jpg"), "lacks snow/3/bee/0.jpg"),
        (write_folders, lambda root: (root / "snow" / "3").rename(root / "old"), "lacks snow/3;"),
        (write_arrays, lambda root: (root / "fog.npy").write_bytes(b"x"), "as a numpy array"),
        (
            write_arrays,
            lambda root: np.save(root / "fog.npy", np.zeros((29, 8, 8, 3), np.uint8)),
            "not five severities of images for the 30 labels",
        ),
        (
            write_arrays,
            lambda root: np.save(root / "labels.npy", np.zeros(30, np.uint8)),
            "has 1 classes, and the images have 3",
        ),
        (
            write_arrays,
            lambda root: np.save(root / "labels.npy", np.arange(30, dtype=np.uint8) // 10),
            "labels.npy does not hold the same labels for each severity",
        ),
        (
            lambda root: write_folders(root, classes=("ant", "bee", "elk")),
            lambda root: None,
            "are not those of the images (elk)",
        ),
        (
            lambda root: write_folders(root, classes=("ant",)),
            lambda root: None,
            "has no class folders",
        ),
        (write_folders, lambda root: root.rename(root.parent / "d"), "there is no folder"),
    ],
)
def test_what_is_incomplete_or_other(tmp_path, write, spoil, message):
    root = write(tmp_path / "c") or tmp_path / "c"
    spoil(root)
    with pytest.raises(UserError) as caught:
        opened(root)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "labels",
    [np.array(["a", "b"]), np.array([0.5, 1]), np.array([[0], [1]]), np.array([-1, 0, 2, 1] * 5)],
)
def test_labels_that_are_no_class_numbers(tmp_path, labels):
    np.save(write_arrays(tmp_path / "c") / "labels.npy", labels)
    with pytest.raises(UserError, match=r"labels\.npy holds .*, not class numbers"):
        opened(tmp_path / "c")


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY\x01\0\x10\0{'descr': (((((", b"PK\3\4 no zip"]
)
def test_a_file_that_is_no_array(tmp_path, content):
    (write_arrays(tmp_path / "c") / "fog.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"Can't read .*fog\.npy as a numpy array"):
        opened(tmp_path / "c")


def test_an_array_that_vanishes_is_bad_images(tmp_path):
    sources = opened(write_arrays(tmp_path / "c"))
    (tmp_path / "c" / "fog.npy").unlink()
    with pytest.raises(BadImage, match="can't be read"):
        sources["fog", 1].read(0)
