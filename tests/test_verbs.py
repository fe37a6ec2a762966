"""The table of verbs: each has its room, its recipe's functions and its options' class."""

import dataclasses
import pkgutil

import pytest

import limbeck
from limbeck.config import preset_names
from limbeck.verbs import ROOMS, VERBS, config_class, function_of, recipe_of


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_the_file_of_its_first_word(verb):
    entry, module = VERBS[verb], recipe_of(verb)
    name = function_of(verb)
    assert module.__name__ == f"limbeck.recipes.{entry.room}.{name}"
    assert callable(getattr(module, name)) and callable(module.report)
    assert dataclasses.is_dataclass(config_class(verb))
    assert entry.presets is None or preset_names(entry.presets)


def test_a_task_has_options_of_its_own():
    kinds = {task: config_class("two-stage", task) for task in VERBS["two-stage"].tasks}
    assert config_class("two-stage") is kinds["classify"]
    assert {task: kind.task for task, kind in kinds.items()} == {name: name for name in kinds}
    assert kinds.keys() == recipe_of("two-stage").TASKS.keys()


def test_every_room_has_a_title_and_a_verb():
    assert {entry.room for entry in VERBS.values()} == ROOMS.keys()


def test_no_package_has_the_name_of_a_verb():
    """Once it is imported it would take the place of the function in ``import limbeck``."""
    found = {module.name for module in pkgutil.iter_modules(limbeck.__path__)}
    assert not found & VERBS.keys()
