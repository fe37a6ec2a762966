"""Lineage: who a network comes from, on what terms, and what is said of it."""

import pytest

from limbeck.models.licences import Ancestor, ancestors, terms_of
from limbeck.models.origins.layouts import LAYOUTS


@pytest.mark.parametrize(
    ("licence", "terms"),
    [
        ("apache-2.0", "open"),
        ("MIT", "open"),
        ("bsd-3-clause", "open"),
        ("cc-by-4.0", "open"),
        ("cc-by-nc-4.0", "non-commercial"),
        ("cc-by-nc-sa-4.0", "non-commercial"),
        ("fair-noncommercial-research-license", "non-commercial"),
        ("apple-amlr", "non-commercial"),
        ("dinov3-license", "own terms"),
        ("other", "own terms"),
        ("ncsa", "own terms"),
        ("unknown", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_terms(licence, terms):
    assert terms_of(licence) == terms


MAE = {"source": "timm:mae", "licence": "cc-by-nc-4.0", "weight_hash": "ab" * 32, "layout": "timm"}
SMALL = {"source": "timm:small", "licence": "apache-2.0"}
FRESH = {"source": "fresh, seed 0"}
DISTILLED = {"made_by": "limbeck distill", "source": "runs/a", "teacher": MAE, "student": FRESH}
TUNED = {"made_by": "limbeck finetune", "source": "runs/b", "teacher": None, "student": DISTILLED}


def test_the_whole_line_is_followed():
    assert ancestors(FRESH) == ancestors({}) == []
    assert [each.role for each in ancestors(MAE)] == ["start"]
    (teacher,) = ancestors(DISTILLED)
    assert teacher == Ancestor("teacher", "timm:mae", "cc-by-nc-4.0", "ab" * 32, "timm")
    assert [each.role for each in ancestors(TUNED)] == ["teacher of the start"]
    both = {"made_by": "limbeck detect", "teacher": TUNED, "student": SMALL}
    assert [(each.role, each.source) for each in ancestors(both)] == [
        ("start", "timm:small"),
        ("teacher of the start of the teacher", "timm:mae"),
    ]


def test_what_a_run_wrote_is_the_line():
    line = [each.plain() for each in ancestors(DISTILLED)]
    run = {"made_by": "limbeck distill", "lineage": line, "teacher": {"source": "another"}}
    assert ancestors(run) == ancestors(DISTILLED)
    (found,) = ancestors({"made_by": "limbeck segment", "student": run})
    assert found.role == "teacher of the start" and found.source == "timm:mae"
    odd = {"made_by": "x", "lineage": [{"source": 3}, 4]}
    assert [each.source for each in ancestors(odd)] == ["of unknown origin"]


def test_what_is_said():
    assert ancestors(SMALL)[0].warning == ""
    (found,) = ancestors(DISTILLED)
    assert found.warning.startswith("The teacher timm:mae is for non-commercial use (cc-by-nc-4.0)")
    assert found.warning.endswith("This is lineage, not legal advice.")
    own = Ancestor("teacher", "timm:d", "dinov3-license", None, None)
    assert "has own terms (dinov3-license)" in own.warning
    file = Ancestor("teacher", "w.pth", None, None, "mae_full")
    assert "its licence is not known (files published in this layout: cc-by-nc-4.0)" in file.warning
    assert "not known; ask" in Ancestor("start", "w.pth", None, None, None).warning
    assert found.plain() == {
        "role": "teacher", "source": "timm:mae", "licence": "cc-by-nc-4.0",
        "terms": "non-commercial", "weight_hash": "ab" * 32, "layout": "timm",
    }  # fmt: skip


def test_hints_are_of_layouts_that_there_are():
    from limbeck.models.licences import PUBLISHED

    assert PUBLISHED.keys() <= {layout.name for layout in LAYOUTS} | {"hiera"}
