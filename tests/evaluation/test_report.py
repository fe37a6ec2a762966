"""Tables as text; pictures that are files, deterministic, and say what they show."""

import sys

import pytest
import torch
from PIL import Image

from limbeck.errors import UserError
from limbeck.evaluation.report import save_bars, table
from limbeck.evaluation.scores import score_of

BARS = {
    "student": {"kNN": [0.9, 0.92], "linear": [0.95, 0.96]},
    "baseline": {"kNN": [0.7, 0.71], "linear": [0.8]},
    "teacher": {"linear": [1.0]},
}


def test_a_table_is_markdown_that_lines_up():
    score = score_of(torch.arange(263) < 81, "top-1")
    rows = [
        {"model": "student", "linear": score, "parameters": 5_524_416, "seconds": 1.23456},
        {"model": "a|b", "seconds": None},
    ]
    assert table(rows).splitlines() == [
        "| model   |              linear | parameters | seconds |",
        "|---------|--------------------:|-----------:|--------:|",
        "| student | 30.8 (25.5 to 36.6) |  5,524,416 |   1.235 |",
        "| a\\|b    |                   - |          - |       - |",
    ]


def test_columns_choose_and_order():
    lines = table([{"a": "x", "b": "y"}], ["b", "a"]).splitlines()
    assert lines[0] == "| b | a |" and lines[2] == "| y | x |"


def test_a_wide_table_goes_on_below():
    rows = [{"net": "a", "one": "1" * 9, "two": "2" * 9, "three": "3" * 9}]
    assert table(rows, width=34).splitlines() == [
        "| net | one       | two       |",
        "|-----|-----------|-----------|",
        "| a   | 111111111 | 222222222 |",
        "",
        "| net | three     |",
        "|-----|-----------|",
        "| a   | 333333333 |",
    ]
    assert table(rows, width=45) == table(rows)  # which is 45 wide
    # One column beside the first there must be, however wide.
    assert len(table(rows, width=5).splitlines()) == 3 * 3 + 2


def pixels(file):
    with Image.open(file) as image:
        return image.size, image.convert("L").getextrema()


def test_bars_are_written_twice_and_name_all(tmp_path):
    png, svg = save_bars(tmp_path / "new" / "bars", BARS, title="Digits, 1,000 test images")
    size, shades = pixels(png)
    assert png.suffix == ".png" and min(size) > 500 and shades == (0, 255)
    text = svg.read_text()
    words = ["Digits, 1,000 test images", "top-1 accuracy (%)", "91.0", "100.0"]
    assert all(word in text for word in [*words, *BARS, "kNN", "linear", "Whisker"])
    assert text.count(">student<") == 1  # one entry in the legend


def test_the_same_picture_has_the_same_bytes(tmp_path):
    first = save_bars(tmp_path / "a", BARS, title="t")
    second = save_bars(tmp_path / "b", BARS, title="t")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"limbeck\[plot\]"):
        save_bars(tmp_path / "bars", BARS, title="t")


def test_names_that_no_font_or_formula_knows_are_drawn(tmp_path):
    from limbeck.evaluation.report import save_bars

    odd = ["caf\udce9", "a_$x_^$", "水 😀", "\x1b[31m"]
    title = "on /photos/r\udce9"
    assert save_bars(tmp_path / "bars", {name: {odd[1]: [0.5]} for name in odd}, title=title)
    svg = (tmp_path / "bars.svg").read_text(encoding="utf-8")
    assert "caf\\udce9" in svg and "a_$x_^$" in svg
