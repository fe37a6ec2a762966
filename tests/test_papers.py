"""What the names of papers are called here."""

import re

import pytest

from limbeck.config import preset_names
from limbeck.methods import METHODS
from limbeck.papers import PAPERS, of_paper
from limbeck.verbs import VERBS


@pytest.mark.parametrize("word", ["d-mae", "D_MAE", "dmae", "D MAE"])
def test_a_name_is_known_however_it_is_written(word):
    assert of_paper(word).startswith(" D-MAE is limbeck distill --method attention-map")


def test_other_names_are_nobody_s():
    assert of_paper("relation") == of_paper("") == of_paper("mae2") == ""


@pytest.mark.parametrize("sentence", PAPERS.values())
def test_what_a_sentence_names_exists(sentence):
    assert set(re.findall(r"limbeck ([\w-]+)", sentence)) <= VERBS.keys()
    assert set(re.findall(r"--method ([\w-]+)", sentence)) <= METHODS.keys()
    presets = {name for verb in VERBS for name in preset_names(verb)}
    assert set(re.findall(r"(?:--preset|such as) (\w+)", sentence)) <= presets
