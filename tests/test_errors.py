"""Errors: the nearest word, the missing extra, the exit codes."""

import importlib.util
import json
from functools import partial

import pytest

from limbeck.errors import (
    RunError,
    UserError,
    did_you_mean,
    explain,
    own_place,
    require_extra,
)


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


@pytest.fixture
def own(tmp_path):
    """A function of a user's module, which raises."""
    file = tmp_path / "mine.py"
    file.write_text("def call(work):\n    return work()\n")
    spec = importlib.util.spec_from_file_location("mine", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.call


def caught(work):
    with pytest.raises(BaseException) as found:
        work()
    return found.value


def test_an_error_below_own_code_is_placed_in_it(own, tmp_path):
    # Raised in a library that own code called, which ours called.
    error = caught(lambda: did_you_mean("word", map(own, [partial(json.loads, "")])))
    place = f"{tmp_path / 'mine.py'}, line 2, in call"
    assert own_place(error) == place
    assert explain(error).startswith(f"{place}: JSONDecodeError: Expecting value")


def test_an_error_without_own_code_has_no_place():
    error = caught(lambda: did_you_mean("word", 7))
    assert own_place(error) is None
    assert explain(error) == "TypeError: 'int' object is not iterable"
    assert explain(ValueError()) == "ValueError"


def test_own_code_that_is_no_python_is_placed_too(tmp_path):
    file = tmp_path / "mine.py"
    error = caught(lambda: compile("def :", str(file), "exec"))
    assert own_place(error) == f"{file}, line 1"
