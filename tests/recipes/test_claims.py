"""What an evaluation may claim of students, from what is on record of them."""

import pytest

from limbeck.models.origins.load import load_encoder
from limbeck.recipes.claims import claims_of, classifies, may_be_distilled, other_classes

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


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("blue", "green", "red"), True),
        (("n01", "n02", "n03"), True),  # as many, and no name tells
        (("amber", "blue", "green"), False),
        (("green", "blue", "red"), False),
        (("blue", "green"), False),
    ],
)
def test_whose_classifier_can_be_asked(classifier, classes, expected):
    encoder = load_encoder(classifier)
    assert classifies(encoder, classes) == expected
    notes = other_classes({"student": [encoder]}, classes)
    assert bool(notes) == (len(classes) == 3 and not expected)


def test_without_a_classifier_nobody_can(student):
    assert not classifies(load_encoder(student), ("blue", "green", "red"))
