import pytest

from limbeck.data.scenes.objects.open import open_both_objects, open_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.errors import UserError
from tests.data.scenes.objects import sets
from tests.data.scenes.objects.test_open import assert_is_the_set, opened


def one(root, rows, yaml="train: images\nnames: [car, dog, person]\n"):
    """The first image, 24 x 16, with such rows."""
    sets.yolo(root)
    (root / "data.yaml").write_text(yaml)
    (root / "labels" / "a1.txt").write_text("\n".join(rows))
    return opened(root)


@pytest.mark.parametrize(
    "names",
    [
        "names: [car, 'dog', \"person\"]",
        "names:\n- car\n- dog\n- person",
        "names: {0: car, 1: dog, 2: person}",
    ],
)
@pytest.mark.parametrize("train", ["images", "[images]", "./images/", "../images"])
def test_forms_of_the_yaml(names, train, tmp_path):
    sets.yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(f"# mine\ntrain: {train}\nval:\n{names}\nnc: 3\n")
    assert_is_the_set(opened(tmp_path))
    assert_is_the_set(opened(tmp_path / "data.yaml"))


def test_a_class_called_no_is_no_false(tmp_path):
    found = one(tmp_path, ["1 .5 .5 .2 .2"], "train: images\nnames: [yes, no, 1.0]\n")
    assert found.classes == ("yes", "no", "1.0")


def test_boxes_and_outlines_mixed(tmp_path):
    found = one(tmp_path, ["0 0.5 0.5 0.5 0.5", "2 0 0 0.5 0 0.5 0.5", ""])
    objects = found.objects(0)
    assert objects.boxes.tolist() == [[6, 4, 18, 12], [0, 0, 12, 8]]
    assert objects.classes.tolist() == [0, 2] and objects.areas.tolist() == [96, 48]
    assert objects.shapes == (None, [[0, 0, 12, 0, 12, 8]]) and found.has_shapes
    assert not found.problems


def test_what_is_broken_is_named_and_left_out(tmp_path):
    rows = [
        "0 0.5 0.5 0.5 0.5", "0 0.5 0.5 0.5 0.5", "1 0.9 0.5 0.3 0.5", "1 0.99 0.5 0.04 0.5",
        "0 12 8 6 6", "0 .5 .5 0 .5", "0 .5 .5", "0 .5 .5 .5 .5 .9", "x .5 .5 .5 .5",
        "-1 .5 .5 .5 .5", "0.5 .5 .5 .5 .5", "2 0 0 1.01 0 1 1",
    ]  # fmt: skip
    found = one(tmp_path, rows)
    assert len(found.objects(0).boxes) == 4
    assert found.objects(0).boxes[3].tolist() == [0, 0, 24, 16]
    key = "images/a1.jpg"
    assert found.problems == tuple(
        (key, sentence)
        for sentence in (
            "row 10 of its labels has the class -1; it is left out",
            "row 11 of its labels has the class 0.5; it is left out",
            "row 5 of its labels has numbers that are no shares of the image, 0 to 1; it is left "
            "out",
            "row 7 of its labels has 2 numbers, which are no box and no outline; it is left out",
            "row 8 of its labels has 5 numbers, which are no box and no outline; it is left out",
            "row 9 of its labels is not of numbers alone; it is left out",
            "1 box that it has twice left out",
            "1 box standing out of it cut",
            "1 box without area left out",
        )
    )


def test_a_class_beyond_the_names_is_refused(tmp_path):
    with pytest.raises(UserError, match="a1.txt, row 2, has the class 3, and there are names of 3"):
        one(tmp_path, ["2 .5 .5 .5 .5", "3 .5 .5 .5 .5"])


def test_missing_and_empty_texts_are_negatives(tmp_path):
    found = one(tmp_path, [])
    assert [len(found.objects(index).boxes) for index in range(4)] == [0, 1, 0, 3]
    assert found.notes == ("1 image (images/c3.jpg) without a text of labels: negatives.",)


def test_classes_without_names_may_be_given_some(tmp_path):
    yaml = "train: images\nnc: 3\n"
    assert one(tmp_path, ["2 .5 .5 .5 .5"], yaml).classes == ("0", "1", "2")
    found = opened(tmp_path, class_names=("car", "dog", "person"), merge=("ignore=car",))
    assert found.classes == ("dog", "person") and found.objects(0).classes.tolist() == [1]
    with pytest.raises(UserError, match="names 1 classes, and there are 3"):
        opened(tmp_path, class_names=("car",))


def test_splits(tmp_path):
    for split in ("train", "valid"):
        sets.write_images(tmp_path, split + "/images/{}.jpg")
        sets.write_labels(tmp_path, split + "/labels/{}.txt")
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    (tmp_path / "data.yaml").write_text(text + "names: [car, dog, person]\n")
    train, held_out = open_both_objects(ObjectOptions(root=str(tmp_path)))
    assert train.key(0) == "train/images/a1.jpg" and held_out.key(0) == "valid/images/a1.jpg"
    assert_is_the_set(held_out)
    with pytest.raises(UserError, match="names ../test/images for its split test, which is not"):
        open_objects(str(tmp_path), ObjectOptions(), "test")


def test_images_may_lie_elsewhere(tmp_path):
    sets.write_labels(sets.write_images(tmp_path / "photos"))
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "mine.yaml"
    file.write_text(f"path: {tmp_path}/photos\ntrain: images\nnames: [car, dog, person]\n")
    found = opened(file)
    assert_is_the_set(found)
    assert found.key(0) == "a1.jpg"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: images\nnames: [a", "as YAML"),
        ("train: images\nnames: &x [*x]", "as YAML"),
        ("train: images\nnames: {a: b}", "the numbers of its classes are none"),
        ("train: images\nnc: many", "the numbers of its classes are none"),
        ("train: images\nnc: 99999999999", "99,999,999,999 are too many"),
        ("train: images\nnames: {99999999999: a}", "too many"),
        ("train: {a: b}\nnames: [a]", "'train"),
        ("train: pictures\nnames: [a]", "names pictures for its split train"),
    ],
)
def test_yamls_that_are_broken(text, words, tmp_path):
    with pytest.raises(UserError, match=words):
        one(tmp_path, [], text)


def test_two_sets_in_one_place(tmp_path):
    sets.yolo(tmp_path)
    (tmp_path / "other.yaml").write_text("train: images\nnames: [a]")
    with pytest.raises(UserError, match="several sets"):
        opened(tmp_path)


def test_of_poses_the_box_is_taken(tmp_path):
    yaml = "train: images\nkpt_shape: [2, 2]\nnames: [car, dog, person]\n"
    found = one(tmp_path, ["0 .5 .5 .5 .5 .1 .1 .9 .9"], yaml)
    assert found.objects(0).boxes.tolist() == [[6, 4, 18, 12]] and not found.has_shapes
