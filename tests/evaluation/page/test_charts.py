"""Charts: what is drawn, what is said of it, and its numbers in a table."""

import builtins

import pytest

from limbeck.errors import UserError
from limbeck.evaluation.page import charts


def test_lines():
    drawn = {"total": ([1, 2, 3], [3.0, 2.0, 1.5]), "part": ([1, 3], [1.0, 0.5])}
    chart = charts.lines("Loss", drawn, "step", "loss")
    assert [trace["name"] for trace in chart.figure["data"]] == ["total", "part"]
    assert chart.figure["layout"]["xaxis"]["title"]["text"] == "step"
    assert chart.alt == "Loss, by step: total ends at 1.5, part ends at 0.5."
    assert chart.rows[1] == {"step": 2, "total": 2.0, "part": None}
    looks = {(trace["line"]["color"], trace["line"]["dash"]) for trace in chart.figure["data"]}
    assert len(looks) == 2


def test_of_many_places_the_table_has_some_and_the_last():
    steps = list(range(1000))
    chart = charts.lines("x", {"a": (steps, steps)}, "step", "y")
    assert len(chart.rows) <= charts.MOST_ROWS + 1 and chart.rows[-1]["step"] == 999
    assert len(chart.figure["data"][0]["x"]) == 1000


def test_bars_have_means_and_spreads():
    groups = {"ours": {"top1": [70.0, 72.0], "knn": [60.0]}, "theirs": {"top1": [50.0]}}
    chart = charts.bars("Scores", groups, "%")
    top1, knn = chart.figure["data"]
    assert (top1["x"], top1["y"]) == (["ours", "theirs"], [71.0, 50.0])
    assert top1["error_y"]["array"] == [pytest.approx(2**0.5), 0]
    assert knn["x"] == ["ours"] and not knn["error_y"]["visible"]
    assert chart.alt == "Scores: most of top1 has ours, most of knn has ours."
    assert chart.rows[0] == {"name": "ours", "top1": "71 ± 1.4", "knn": "60"}


def test_points_and_heat():
    chart = charts.points("Size", {"a": (1.0, 50.0), "b": (10.0, 60.0)}, "M", "%")
    assert chart.figure["layout"]["xaxis"]["type"] == "log" and len(chart.rows) == 2
    heat = charts.heat("Confusion", [[90.0, 10.0], [0.0, 100.0]], ["cat", "dog"])
    assert heat.rows[0] == {"class": "cat", "cat": "90.0", "dog": "10.0"}
    assert heat.figure["layout"]["yaxis"]["autorange"] == "reversed"


def test_without_plotly_the_extra_is_named(monkeypatch):
    known = builtins.__import__

    def missing(name, *rest):
        if name.startswith("plotly"):
            raise ImportError(name)
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'limbeck\[report\]'"):
        charts.lines("x", {"a": ([1], [1.0])}, "step", "y")
