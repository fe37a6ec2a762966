"""Budgets as they are written, and the shapes among which is chosen."""

import pytest

from limbeck.errors import UserError
from limbeck.models.budgets import FAMILIES, is_budget, read_budget
from limbeck.models.options import StudentOptions
from limbeck.models.shapes import check_model_name, known_model_names
from limbeck.recipes.run.checks import check_student


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("<=5ms", {"latency_ms": 5.0}),
        ("<=6M", {"params": 6e6}),
        ("<=1.3GMAC", {"macs": 1.3e9}),
        ("<=800 MMACs", {"macs": 8e8}),
        (" <= 0.5s , <6M", {"latency_ms": 500.0, "params": 6e6}),
        ("≤.5ms", {"latency_ms": 0.5}),
    ],
)
def test_what_is_written_is_read(text, limits):
    assert is_budget(text) and read_budget(text) == pytest.approx(limits)


@pytest.mark.parametrize("text", ["<=5 parsecs", "<=5", "5ms", "<=0M", "<=5ms,", ">=5ms", "<=-1M"])
def test_nonsense_is_answered_with_the_forms(text):
    with pytest.raises(UserError, match=r"no budget of a student; write it as '<=5ms'"):
        read_budget(text)


def test_one_cost_is_limited_once():
    with pytest.raises(UserError, match="limits the same twice"):
        read_budget("<=5ms,<=4ms")


def test_no_model_is_taken_for_a_budget():
    assert not any(map(is_budget, known_model_names()))
    with pytest.raises(UserError, match="a budget, for which limbeck distill, compare and search"):
        check_model_name("<=5ms")


def test_every_shape_is_sound():
    for name in (name for family in FAMILIES.values() for name in family):
        check_student(StudentOptions(name=name))


def test_beside_a_budget_no_shape_is_stated():
    check_student(StudentOptions(name="<=5ms", img_size=32, patch_size=4))
    for other in ({"depth": 3}, {"weights": "timm:vit_tiny_patch16_224"}):
        with pytest.raises(UserError, match=f"student.{next(iter(other))} has no effect"):
            check_student(StudentOptions(name="<=5ms", **other))
