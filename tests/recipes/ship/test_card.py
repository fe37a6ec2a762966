"""The model card: places left out, kinds named, the line of weights as a table."""

from dataclasses import replace

import pytest

from limbeck.models.licences import Ancestor
from limbeck.recipes.ship.card import card, kind_of, without_places
from tests.fakes import FakeEncoder


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/ann/photos", "photos"),
        ("~/photos", "photos"),
        ("../photos/a.png", "a.png"),
        ("C:\\Users\\ann\\photos", "photos"),
        ("C:/Users/ann", "ann"),
        ("timm:vit_tiny", "timm:vit_tiny"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("relation", "relation"),
        (3, 3),
        ({"a": ["/x/y", {"b": "/z/w"}]}, {"a": ["y", {"b": "w"}]}),
    ],
)
def test_places_are_left_out(value, expected):
    assert without_places(value) == expected


def test_the_line_and_the_use():
    facts = FakeEncoder().facts
    bare = replace(facts, num_classes=0, architecture={"kind": "timm", "name": "vit_small"})
    assert kind_of(bare) == "backbone" and kind_of(facts) == "classifier"
    line = [Ancestor("teacher", "/home/ann/mae.pth", "cc-by-nc-4.0", "ab" * 32, None)]
    text = card(
        "me/net", bare, {"made_by": "limbeck distill"}, line,
        num_parameters=1_250_000, licence=None, is_timm=False,
    )  # fmt: skip
    assert "license" not in text.split("---")[1] and "1.25 M parameters" in text
    cells = ["teacher", "mae.pth", "cc-by-nc-4.0", "non-commercial", "abababababababab"]
    row = next(line for line in text.splitlines() if "mae.pth" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")] == cells
    assert "/home/ann" not in text and "hf download me/net" in text
