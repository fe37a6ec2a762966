"""The words of a search: its table, its verdict, and what it says without a picture."""

import json
import logging
import sys

import pytest

from limbeck.models.options import StudentOptions
from limbeck.recipes.study.rounds import Candidate, Outcome
from limbeck.recipes.study.search_results import Search, report, table_of, verdict, write
from tests.recipes.runs import cells_of
from tests.recipes.searches import SEED


def candidate(name, score, factor="depth", scale=1.0, failure=None):
    return Candidate(
        name, StudentOptions(name=SEED), int(name[-1] == "1"), factor,
        costs={"params": 4e6 * scale, "macs": 8e8 * scale, "latency_ms": 10 * scale},
        scores=[] if failure else [score], seconds=7.4, failure=failure,
    )  # fmt: skip


@pytest.fixture
def search(tmp_path):
    seed, thin = candidate("seed", 0.8, "seed"), candidate("b1", 0.7, "width", 0.5)
    best, broken = candidate("c1", 0.75, "depth", 0.4), candidate("d1", 0, failure="NaN")
    outcome = Outcome([seed, thin, best, broken], best, thin, {"latency_ms": 5.0})
    return Search(tmp_path, outcome, "top1", "Latency: torch.", False)


def test_the_table_marks_what_matters(search):
    rows = cells_of(table_of(search))
    assert [row[""] for row in rows] == ["front", "width alone", "winner, front", "failed"]
    assert rows[3]["top-1 %"] == "-"
    assert [rows[2][name] for name in ("params, M", "MACs, M", "latency, ms")] == [
        "1.600", "320.0", "4.00",
    ]  # fmt: skip


def test_the_verdict_compares_with_width_alone(search):
    text = verdict(search)
    assert "top-1 75.0 % (the seed 80.0 %); 2.50 times fewer parameters" in text
    assert "Width alone" in text and "+5.0 points" in text and "best of 4" in text
    search.outcome.baseline = None
    assert "nothing to compare with" in verdict(search)
    search.outcome.baseline = search.outcome.winner
    assert "No other factor beat width alone" in verdict(search)


def test_without_matplotlib_there_is_a_table_and_a_note(search, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.WARNING, "limbeck"):
        write(search)
    assert "No picture: " in caplog.text and "limbeck[plot]" in caplog.text
    assert json.loads((search.out / "search.json").read_text())["winner"] == "c1"
    assert table_of(search) in (search.out / "table.md").read_text()
    assert "limbeck distill --student vit_tiny:" in report(search)
