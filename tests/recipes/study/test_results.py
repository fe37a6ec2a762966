"""What studies find: rows of values, their table, and the files."""

import json
from types import SimpleNamespace

import torch

from limbeck.evaluation.scores import score_of
from limbeck.recipes.study.results import (
    RUNS,
    Column,
    Result,
    Results,
    mean_of,
    percent,
    row_of,
    table_of,
    time_columns,
    write,
)
from tests.recipes.runs import cells_of


class Own(Results):
    FILE = "own.json"

    def plain(self):
        return self.by_seed("x")

    def findings(self):
        return ["nothing"]


HALF = score_of(torch.tensor([True, False]), "top-1")


def test_scores_are_numbers_or_of_images():
    found = [Result({"top1": HALF, "knn": 0.25}, {"seconds": 2.0}), Result({"knn": 0.75})]
    assert row_of(found) == {"runs": [2], "top1": [0.5], "knn": [0.25, 0.75], "seconds": [2.0]}
    plain = found[0].plain()
    assert plain["scores"] == {"top1": HALF.plain(), "knn": 0.25}
    assert plain["cost"] == {"seconds": 2.0}


def test_what_is_measured_of_a_further_run_is_added():
    result = Result({"a": 0.1}, {"seconds": 1.0})
    result.add(Result({"b": 0.2}, {"macs": 3.0}))
    assert result == Result({"a": 0.1, "b": 0.2}, {"macs": 3.0, "seconds": 1.0})


def test_values_and_scores_are_of_the_seeds_that_have_them(tmp_path):
    arms = [SimpleNamespace(name=name) for name in "xy"]
    found = Own(tmp_path, arms, [], {"x": {0: Result({"top1": HALF}), 1: Result()}}, {"y": "no"})
    assert found.values("x", "top1") == [0.5] and found.scores("x", "top1") == [HALF]
    assert found.values("y", "top1") == []
    assert found.row("x") == {"runs": [2], "top1": [0.5]}
    assert found.row("y") == {"runs": [0], "failed": [1.0]}
    found.write()
    assert json.loads((tmp_path / "own.json").read_text())["1"] == {"scores": {}, "cost": {}}
    assert (tmp_path / "table.md").read_text() == "nothing\n"


def test_a_table_has_the_columns_that_a_row_knows():
    rows = {
        "x": row_of([Result({"top1": 0.5}), Result({"top1": 1.0})]),
        "y": row_of([]) | {"macs": []},
    }
    columns = [
        Column("top1", "top-1 %", percent),
        Column("top5", "top-5 %", percent),
        Column("macs", "G MACs", mean_of(".3g", 1e9)),
        RUNS,
    ]
    assert cells_of(table_of("arm", rows, columns)) == [
        {"arm": "x", "top-1 %": "75.0 ± 35.4", "G MACs": "-", "runs": "2"},
        {"arm": "y", "top-1 %": "-", "G MACs": "-", "runs": "0"},
    ]


def test_times_have_one_unit():
    rows = {"x": {"a": [30.0], "b": [599.0]}, "y": {"a": [60.0, 120.0]}}
    (short,) = time_columns({"a": "tuning"}, rows)
    assert short.title == "tuning, s" and short.show([30.0]) == "30.0"
    rows["x"]["b"] = [600.0]
    long = time_columns({"a": "tuning", "b": "more"}, rows)
    assert [each.title for each in long] == ["tuning, min", "more, min"]
    assert long[0].show(rows["y"]["a"]) == "1.5 ± 0.7"


def test_both_files_are_written(tmp_path):
    write(tmp_path / "found.json", {"a": 1}, ["one", "two"])
    assert json.loads((tmp_path / "found.json").read_text()) == {"a": 1}
    assert (tmp_path / "table.md").read_text() == "one\n\ntwo\n"
