"""The help: a page by default, in lines of a terminal's width, and nothing left out of it."""

from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest
import tyro

from limbeck.config import Few, PositiveFloat, Rate, Seed, option_flags, options
from limbeck.errors import UserError
from limbeck.help import PAGE, help_of, overview, read_section
from limbeck.methods import METHODS
from limbeck.verbs import ROOMS, VERBS, config_class


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


def told(verb, topic="", **more):
    return help_of(verb, config_class(verb)(), topic, **more)


def widest(text):
    return max(map(len, text.splitlines()))


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_s_help_is_a_page_that_names_every_section(verb):
    text = told(verb)
    assert len(text.splitlines()) <= PAGE and widest(text) <= 80
    root = read_section(config_class(verb)())
    for section in root.sections:
        assert section.name in text
    for option in root.own:
        assert option.head in text or ", ".join(option.flags) in text


@pytest.mark.parametrize("verb", VERBS)
def test_all_tells_every_option(verb):
    text = told(verb, "all")
    assert widest(text) <= 80
    words = {word.rstrip(",") for word in text.split()}
    places = {f"--{option.flags[0].lower()}" for option in read_section(config_class(verb)()).own}
    places |= {place.removesuffix(" ...") for place in places}
    missing = {*option_flags(config_class(verb))} - words
    assert missing <= places | {"--source", "--out"}  # by place, under another word


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_unfolded_where_it_is_chosen_or_asked_for(method):
    text = told("distill", method=method)
    assert widest(text) <= 80 and f"the method {method}: " in text
    sections = {each.name: each for each in read_section(config_class("distill")()).sections}
    for option in sections[method].own:
        assert option.head in text
    assert told("distill", method).startswith(f"usage: limbeck distill [options]\n\n{method}: ")
    asked = " ".join(told("distill", method).split())
    assert "--train.epochs" not in asked
    for section in sections[method].all_sections():
        for option in section.own:
            assert f"{', '.join(option.flags)} ({option.facts}) {option.doc}".strip() in asked


def test_a_section_and_an_option_are_unfolded():
    assert "\n  --train.ema-decay (number above 0, below 1)\n" in told("distill", "train")
    assert "\nrelation.regression: " in told("distill", "relation")
    assert "\nspecific.optim: " in told("two-stage", "specific")
    for name in ("data", "--data.root"):
        assert "\n  --data, --data.root (text)\n" in told("distill", name)
    assert told("distill", "train.save_every").endswith(
        "  --train.save-every (whole number from 1, default 500)\n      Steps between checkpoints."
    )


def test_an_unknown_topic_names_the_nearest():
    with pytest.raises(UserError, match="no section, method or option 'optm'.* mean 'optim'"):
        told("distill", "optm")


def test_a_wider_terminal_has_longer_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert 80 < widest(told("distill", "all")) <= 100
    monkeypatch.setenv("COLUMNS", "40")
    assert 40 < widest(told("distill", "all")) <= 80


def test_the_overview_has_the_verbs_by_room():
    text = overview()
    assert widest(text) <= 80
    at = [text.index(f"\n{title}:\n") for title in ROOMS.values()]
    assert at == sorted(at)
    for name, verb in VERBS.items():
        place = text.index(f"\n  {name} ")
        assert [*ROOMS][sum(start < place for start in at) - 1] == verb.room


def test_the_whole_of_a_short_help():
    assert told("demo") == DEMO.strip()


DEMO = """
usage: limbeck demo [options]

Distil a small student from a teacher trained on the spot, and prove that it
helped.

options:
  --out (path, default demo)
      Folder for the images, the runs, the table and the picture.
  --seeds (whole number from 1, default 3)
      Students of each kind.
  --teacher-epochs (number above 0, default 12)
  --student-epochs (number above 0, default 5)
"""


@options
class Inner:
    """What is within."""

    scale: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.5


@options
class Kinds(Inner):
    """All kinds of options."""

    place: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    switch: Annotated[bool, tyro.conf.arg(aliases=["-s"])] = True
    """On or off."""
    choice: Literal["a", "b"] | None = None
    choices: tuple[Literal["a", "b"], ...] = ("a", "b")
    rate: Rate = 0.25
    pair: tuple[PositiveFloat, PositiveFloat] = (1.0, 2.5)
    counts: tuple[Annotated[int, pydantic.Field(ge=1, le=5)], ...] = (1, 2)
    blocks: Few | None = None
    seed: Seed = 0
    out: Path = Path("runs/x")
    inner: Inner = Inner(scale=0.75)
    """As here."""


def test_types_ranges_and_defaults_are_told_in_words():
    root = read_section(Kinds())
    facts = {option.flags[-1]: option.facts for option in root.own}
    assert facts == {
        "--scale": "number above 0, up to 1, default 0.5",
        "PLACE ...": "text ...",
        "--no-switch": "on/off, default on",
        "--choice": "a | b",
        "--choices": "some of a | b, default a b",
        "--rate": "number from 0, below 1, default 0.25",
        "--pair": "2 numbers above 0, default 1 2.5",
        "--counts": "whole numbers 1..5, default 1 2",
        "--blocks": "whole number from 0",
        "--seed": "whole number from 0, default 0",
        "--out": "path, default runs/x",
    }
    named = root.named()
    assert named["s"].flags == ("-s", "--switch", "--no-switch")
    assert named["inner.scale"].facts.endswith("default 0.75")
    assert named["switch"].doc == "On or off." and named["scale"].doc == ""
    assert root.sections[0].doc == "What is within. As here."


def test_a_task_is_an_option_whose_help_is_its_own():
    text = help_of("two-stage", config_class("two-stage", "segment")(), "specific")
    assert "--specific.segmenter.head" in text and "--specific.head " not in text
    assert "--task (classify | segment, default segment)" in help_of(
        "two-stage", config_class("two-stage", "segment")(), "all"
    )
