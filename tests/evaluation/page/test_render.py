"""The page: all in one file, escaped, with a text for everything."""

import html.parser
import re

from limbeck.evaluation.page.charts import lines
from limbeck.evaluation.page.render import Code, Picture, Section, Table, Text, render

NASTY = "<script>alert(1)</script>"


class Seen(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))


def page_of(*blocks, title="A page", lead=("It helped.",)):
    seen = Seen()
    text = render(title, lead, [Section("Part", list(blocks)), Section("Empty")])
    seen.feed(text)
    return text, seen


def test_what_is_said_is_said_first_and_nothing_is_empty():
    text, seen = page_of(Text("| a | b |\n|---|---|\n| 1 | 2 |"))
    assert text.index("It helped.") < text.index("<nav") < text.index("<table")
    assert "Empty" not in text and seen.tags.count("h1") == 1 and "footer" in seen.tags
    assert "plotly" not in text  # without a chart


def test_nothing_is_asked_of_any_address():
    chart = lines("Loss", {"a": ([1, 2], [1.0, 0.5])}, "step", "loss")
    text, seen = page_of(chart, Picture(b"\x89PNG", "a cat"), Code("limbeck demo"))
    places = [v for _, attrs in seen.attributes for k, v in attrs.items() if k in ("src", "href")]
    assert all(place.startswith(("#", "data:")) for place in places) and places
    policy = next(a["content"] for tag, a in seen.attributes if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    images = [attrs for tag, attrs in seen.attributes if tag == "img"]
    assert images and all(attrs["alt"] for attrs in images)
    assert any(
        a.get("role") == "img" and "ends at 0.5" in a["aria-label"] for _, a in seen.attributes
    )
    assert len(text) < 10 * 2**20


def test_what_a_file_says_is_no_html():
    chart = lines(NASTY, {NASTY: ([1, 2], [1.0, 0.5])}, "step", NASTY)
    blocks = [Text(NASTY), Table([{NASTY: NASTY}], NASTY), Code(NASTY), chart, Picture(b"", NASTY)]
    text, _ = page_of(*blocks, title=NASTY, lead=[NASTY])
    assert NASTY not in text
    assert len(re.findall(r"<script", text.split("plotly.js v")[0])) == 2  # figures, library


def test_numbers_are_short_and_none_is_empty():
    text, _ = page_of(Table([{"a": 0.123456789, "b": None, "c": 7}]))
    assert '<th scope="row">0.1235</th><td></td><td>7</td>' in text
