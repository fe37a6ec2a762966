"""Runs and studies give what they gave when ``recorded/recorded.json`` was written.

Bit by bit on the kind of processor and with the libraries of then; on another processor but for
rounding; with other libraries, which draw otherwise, in names and numbers of things alone. See
``tests/recorded/__main__.py`` for how, and when, it is written anew.
"""

import json

import pytest

from tests.recorded.runs import (
    FILE,
    LIBRARIES,
    NAMES,
    Setting,
    differences,
    environment,
    record,
    shape_of,
)

MOST = 20
"""Differences that are told of a record."""


@pytest.fixture(scope="module")
def recorded():
    return json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return Setting(tmp_path_factory.mktemp("recorded").resolve())


def test_everything_is_recorded(recorded):
    assert recorded.keys() == {"environment", *NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_it_was(name, recorded, setting):
    now = json.loads(json.dumps(record(setting, name)))
    was, there, here = recorded[name], recorded["environment"], environment()
    if any(there[library] != here[library] for library in LIBRARIES):
        was, now = shape_of(was), shape_of(now)  # other draws and other pixels
    told = list(differences(was, now, there == here, name))
    assert not told, "\n".join(["differs from recorded.json:", *told[:MOST], f"{len(told)} in all"])


def test_bits_are_compared_where_they_can_be(recorded):
    """Skipped where they are not, so that a report of the tests says which it was."""
    if recorded["environment"] != environment():
        pytest.skip("another processor (compared to 1e-3), or other libraries (names alone)")


@pytest.mark.parametrize(
    ("now", "is_exact", "told"),
    [
        ({"steps": [{"step": 2, "loss": 0.5}]}, True, []),
        (
            {"steps": [{"step": 2, "loss": 0.5000001}]},
            True,
            ["run / steps [0], step 2 / loss: was 0.5, is 0.5000001"],
        ),
        ({"steps": [{"step": 2, "loss": 0.5000001}]}, False, []),
        (
            {"steps": [{"step": 2, "loss": 0.51}]},
            False,
            ["run / steps [0], step 2 / loss: was 0.5, is 0.51"],
        ),
        ({"step": []}, False, ["run: no longer there ['steps'], new ['step']"]),
        (
            {"steps": []},
            False,
            ["run / steps: 1 entries were [{'step': 2, 'loss': 0.5}], 0 are []"],
        ),
    ],
)
def test_a_difference_is_told_with_its_place(now, is_exact, told):
    was = {"steps": [{"step": 2, "loss": 0.5}]}
    assert list(differences(was, now, is_exact, "run")) == told


def test_without_the_same_bits_hashes_and_what_hangs_on_one_image_may_differ():
    was = {"sha256": "a" * 64, "scores": {"top1": 0.5}, "name": "x"}
    now = {"sha256": "b" * 64, "scores": {"top1": 0.25}, "name": "x"}
    assert len(list(differences(was, now, True, "run"))) == 2
    assert list(differences(was, now, False, "run")) == []
    assert list(differences(was, now | {"scores": {}}, False, "run"))
