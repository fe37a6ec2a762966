"""What an evaluation may claim of students, from what is on record of them."""

import pytest
import torch

from limbeck.models.imagenet import imagenet_ids
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.look.claims import (
    are_imagenet,
    claims_of,
    class_notes,
    columns_among,
    columns_of,
    in_order_of,
    may_be_distilled,
)
from tests.fakes import FakeEncoder

TAUGHT, ALONE = {"teacher": {"source": "t"}}, {"teacher": None}
FRESH, BARE = {"source": "fresh, seed 0"}, {"source": "w.pth", "layout": "mae_encoder"}


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (TAUGHT, True),
        (ALONE, False),
        (FRESH, False),
        (BARE, True),  # it may have been distilled, for all one knows
        ({}, True),
        (ALONE | {"student": TAUGHT}, True),
        (ALONE | {"student": ALONE}, False),
        (ALONE | {"student": FRESH}, False),
        (ALONE | {"student": BARE}, True),
        (TAUGHT | {"student": ALONE}, True),
        (TAUGHT | {"student": FRESH}, True),
        (ALONE | {"student": TAUGHT | {"student": FRESH}}, True),
        (ALONE | {"student": ALONE | {"student": TAUGHT}}, True),
        (ALONE | {"student": ALONE | {"student": FRESH}}, False),
    ],
)
def test_a_teacher_at_any_level_is_a_distillation(origin, expected):
    assert may_be_distilled(origin) == expected


def test_claims_are_as_large_as_the_comparison(student, teacher):
    for run, is_distilled in ((student, True), (teacher, False)):
        claims, notes = claims_of([load_encoder(run)], has_baseline=True)
        assert ("Distillation" in claims[0]) == is_distilled and notes == []
    claims, notes = claims_of([load_encoder(student)], has_baseline=False)
    assert claims[0].startswith("Better than untrained weights: ") and len(notes) == 1


CLASSES = ("blue", "green", "red")
IDS = ("n01440764", "n01443537", "n01484850")


def named(classifier, names):
    encoder = load_encoder(classifier)
    encoder.facts.origin["classes"] = names and list(names)
    return encoder


@pytest.mark.parametrize(
    ("names", "classes", "expected", "told"),
    [
        (CLASSES, CLASSES, [0, 1, 2], None),
        (("red", "blue", "green"), CLASSES, [1, 2, 0], "another order: they are matched by name"),
        (CLASSES, ("n01", "n02", "n03"), None, "(blue, green, red): it is not asked"),
        (CLASSES, ("amber", "blue", "green"), None, "it is not asked"),
        (CLASSES, ("blue", "green"), None, None),
        (None, CLASSES, [0, 1, 2], "does not name its classes: its answers are taken"),
        (("LABEL_0", "LABEL_1", "LABEL_2"), CLASSES, [0, 1, 2], "does not name its classes"),
        (CLASSES, IDS, [0, 1, 2], "in the order of WordNet's ids"),
        (IDS, CLASSES, [0, 1, 2], "in the order of WordNet's ids"),
        (IDS, (*IDS[:2], "n09999999"), None, "it is not asked"),
    ],
)
def test_whose_classifier_can_be_asked(classifier, names, classes, expected, told):
    encoder = named(classifier, names)
    assert columns_of(encoder, classes) == expected
    notes = class_notes({"student": [encoder, encoder]}, classes)
    assert len(notes) == (told is not None) and all(told in note for note in notes)


NUMBERS = tuple(sorted(map(str, range(1000))))  # as ImageNet-V2's folders sort: 0, 1, 10, 100


@pytest.mark.parametrize("names", [None, imagenet_ids(), [f"word {i}" for i in range(1000)]])
def test_folders_of_numbers_are_classes_by_number(names):
    encoder = FakeEncoder(num_classes=1000, origin={"classes": names})
    assert columns_of(encoder, NUMBERS) == [int(name) for name in NUMBERS]
    from_one = tuple(sorted(map(str, range(1, 1001))))
    assert columns_of(encoder, from_one) == [int(name) - 1 for name in from_one]


def test_some_of_the_classes_are_asked_among_themselves(classifier):
    encoder = named(classifier, CLASSES)
    assert columns_among(encoder, CLASSES) == [0, 1, 2]
    assert columns_among(encoder, ("red", "green")) == [2, 1]
    assert columns_among(encoder, ("red", "amber")) is None
    assert columns_among(named(classifier, None), ("red", "green")) is None


@pytest.mark.parametrize("names", [None, imagenet_ids(), [f"word {i}" for i in range(1000)]])
def test_imagenet_classifiers_know_wordnets_ids(names):
    encoder = FakeEncoder(num_classes=1000, origin={"classes": names})
    some = imagenet_ids()[5:900:7]
    assert columns_among(encoder, some) == list(range(5, 900, 7))
    assert columns_among(encoder, [*some, "n99999999"]) is None
    assert are_imagenet(imagenet_ids()) and not are_imagenet(some)


def test_logits_are_put_in_the_images_order():
    logits = torch.arange(6.0).view(2, 3)
    assert in_order_of(logits, [0, 2]).tolist() == [[0, 2], [3, 5]]
    assert in_order_of(logits, [1, 2, 0]).tolist() == [[1, 2, 0], [4, 5, 3]]
    assert in_order_of(logits, [0, 1, 2]) is logits


def test_without_a_classifier_nobody_can(student):
    assert columns_of(load_encoder(student), CLASSES) is None
