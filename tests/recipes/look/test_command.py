"""The command to repeat a run: what it says is what the run was."""

import json
import shlex

import pytest

from limbeck.cli import parse
from limbeck.config import from_plain
from limbeck.errors import UserError
from limbeck.recipes.look.command import NOT_OPTIONS, command_of
from limbeck.verbs import config_class


@pytest.mark.parametrize("name", ["student", "teacher", "classifier", "segmenter", "detector"])
def test_it_is_read_as_the_run_was(name, request):
    plain = json.loads((request.getfixturevalue(name) / "config.json").read_text())
    limbeck, verb, *words = shlex.split(command_of(plain))
    assert (limbeck, verb) == ("limbeck", plain["verb"])
    kind = config_class(verb)
    own = {key: value for key, value in plain.items() if key not in NOT_OPTIONS}
    assert parse(verb, kind, words) == from_plain(kind, own, "the run")


def test_defaults_are_left_out_and_words_are_quoted(student):
    plain = json.loads((student / "config.json").read_text())
    plain["data"]["root"] = "my photos"
    command = command_of(plain)
    assert "--data.root 'my photos'" in command and "weight-decay" not in command


def test_another_version_s_config(student):
    plain = json.loads((student / "config.json").read_text()) | {"sparkle": 3}
    with pytest.raises(UserError, match="sparkle"):
        command_of(plain)
