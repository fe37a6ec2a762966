"""The table, the best arm and the data of a comparison, from scores that are made up."""

import json

import pytest

from limbeck.recipes.study.arms import read_arms
from limbeck.recipes.study.comparison import Comparison, best_of, report, table_of
from limbeck.recipes.study.results import Result
from tests.recipes.runs import cells_of


def found(tmp_path, moco=(0.7, 0.8), dino=(0.5, 0.5)):
    comparison = Comparison(tmp_path, read_arms(("scratch", "moco-v3", "d=dino")), ["All equal."])
    for name, values in (("moco-v3", moco), ("d", dino)):
        comparison.results[name] = {
            seed: Result({"knn_top1": value / 2, "linear_top1": value}, {"seconds": 60.0 * value})
            for seed, value in enumerate(values)
        }
    return comparison


def test_the_table_has_means_and_spreads_of_what_was_measured(tmp_path):
    lines = table_of(found(tmp_path)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["arm", "linear %", "kNN %", "pre-training, s", "images/s", "MiB", "runs"]
    assert cells[2] == ["scratch", "-", "-", "-", "-", "-", "0"]
    assert cells[3] == ["moco-v3", "75.0 ± 7.1", "37.5 ± 3.5", "45.0 ± 4.2", "-", "-", "2"]


def test_long_times_are_in_minutes_and_parts_of_the_labels_have_columns(tmp_path):
    comparison = found(tmp_path)
    comparison.label_fractions = (0.01, 1.0)
    for result in comparison.results["d"].values():
        result.cost["seconds"] = 900.0
        result.scores["finetuned_0.01_top1"] = 0.25
        result.cost["finetuned_0.01_seconds"] = 60.0
    assert max(map(len, table_of(comparison).splitlines())) <= 80
    row = cells_of(table_of(comparison))[2]
    assert row["pre-training, min"] == "15.0 ± 0.0"
    assert row["fine-tuned % (1 % of labels)"] == "25.0 ± 0.0"
    assert row["fine-tuning (1 % of labels), min"] == "1.0 ± 0.0"
    assert "fine-tuned %" not in row  # nobody was, with all labels


@pytest.mark.parametrize(
    ("moco", "dino", "said"),
    [
        ((0.7, 0.8), (0.5, 0.5), "Best by linear %: moco-v3, 75.0; clear of all others"),
        ((0.7, 0.8), (0.7, 0.75), "Best by linear %: moco-v3, 75.0; not clear of d, "),
        ((0.7,), (0.9,), "Best by linear %: d, 90.0. One run of an arm says nothing of luck"),
    ],
)
def test_the_best_is_named_with_those_it_is_not_clear_of(tmp_path, moco, dino, said):
    assert best_of(found(tmp_path, moco, dino)).startswith(said)


def test_fine_tuning_decides_where_two_arms_have_it(tmp_path):
    comparison = found(tmp_path)
    for name, value in (("scratch", 0.6), ("moco-v3", 0.5)):
        results = comparison.results.setdefault(name, {0: Result(), 1: Result()})
        for result in results.values():
            result.scores["finetuned_top1"] = value
    assert best_of(comparison).startswith("Best by fine-tuned %: scratch, 60.0")


def test_failures_are_told_and_not_ranked(tmp_path):
    comparison = found(tmp_path)
    comparison.failures["moco-v3"] = "it blew up."
    text = report(comparison)
    assert "There are not two arms to compare." in text and "moco-v3 failed: it blew up." in text
    assert "All equal." in text and comparison.problems
    comparison.write()
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert [arm["failure"] for arm in data["arms"]] == [None, "it blew up.", None]
    assert data["arms"][2]["seeds"]["1"]["scores"] == {"knn_top1": 0.25, "linear_top1": 0.5}
    assert (tmp_path / "table.md").read_text() == text + "\n"
