"""Errors: the nearest word, the missing extra, the exit codes."""

import pytest

from limbeck.errors import RunError, UserError, did_you_mean, require_extra


@pytest.mark.parametrize(
    ("word", "nearest"),
    [("relatoin", "relation"), ("masked", "masked-pixel"), ("Pixel", "masked-pixel")],
)
def test_the_nearest_word_is_named(word, nearest):
    assert did_you_mean(word, ["relation", "masked-pixel"]) == f" Did you mean '{nearest}'?"


@pytest.mark.parametrize("word", ["", "zzz"])
def test_a_word_that_is_near_to_none_gets_no_advice(word):
    assert did_you_mean(word, ["relation", "masked-pixel"]) == ""


def test_choices_may_be_any_iterable():
    assert did_you_mean("relatoin", iter(["relation"])) == " Did you mean 'relation'?"


def test_a_missing_extra_says_what_to_install():
    error = require_extra("wandb", "wandb", "Logging")
    assert isinstance(error, UserError)
    assert str(error) == (
        "Logging needs the package 'wandb', which is not installed; "
        "run: pip install 'limbeck[wandb]'."
    )


def test_bad_input_exits_with_2_and_a_failed_run_with_1():
    assert UserError("").exit_code == 2
    assert RunError("").exit_code == 1
    assert issubclass(RunError, UserError)
