"""What is left of accuracy under corruptions: means, relative numbers, words."""

import json
from dataclasses import replace

import pytest
import torch

from limbeck.evaluation.robustness import (
    ALEXNET_ERRORS,
    LINEAR,
    OWN,
    Robustness,
    by_corruption,
    pack,
    published_mce,
    relative_error,
    summarize,
    tables,
    unpack,
)


def robustness(fog, snow, clean=(1, 1, 1, 0)):
    """Answers to four images; of each corruption one row of hits per severity, 1 and 5."""
    corrupted = torch.tensor([fog, snow], dtype=torch.bool)
    return Robustness(("fog", "snow"), (1, 5), torch.tensor(clean) == 1, corrupted, "somebody")


STUDENT = robustness(fog=[[1, 1, 1, 0], [1, 0, 0, 0]], snow=[[1, 1, 0, 0], [0, 0, 0, 0]])
BASELINE = robustness(fog=[[1, 1, 0, 0], [0, 0, 0, 0]], snow=[[1, 0, 0, 0], [0, 0, 0, 1]])


def test_means():
    assert STUDENT.clean_top1 == 0.75
    assert STUDENT.top1() == {"fog": [0.75, 0.25], "snow": [0.5, 0.0]}
    assert STUDENT.score.mean == pytest.approx(0.375)
    assert STUDENT.score.per_image.tolist() == [0.75, 0.5, 0.25, 0]
    assert STUDENT.score.low < 0.375 < STUDENT.score.high
    assert STUDENT.score.how == "top-1 of somebody, 2 corruptions x 2 severities"
    assert STUDENT.kept == pytest.approx(0.5)
    assert robustness([[1] * 4] * 2, [[1] * 4] * 2, clean=(0, 0, 0, 0)).kept is None


def test_relative_error_is_the_mean_of_each_corruption_s():
    # Errors of fog 0.5 and 0.75, of snow 0.75 and 0.75.
    assert relative_error([STUDENT], [BASELINE]) == pytest.approx((0.5 / 0.75 + 1) / 2)
    assert relative_error([STUDENT, BASELINE], [BASELINE]) == pytest.approx((0.625 / 0.75 + 1) / 2)
    assert relative_error([STUDENT], [STUDENT]) == 1
    perfect = robustness([[1] * 4] * 2, [[1] * 4] * 2)
    assert relative_error([STUDENT], [perfect]) is None


def test_answers_are_kept_to_the_last_image():
    many = Robustness(
        ("fog",), (1, 2, 3), torch.rand(11) < 0.5, torch.rand(1, 3, 19) < 0.5, "somebody"
    )
    again = unpack(json.loads(json.dumps(pack(many))))
    assert torch.equal(again.clean, many.clean) and torch.equal(again.corrupted, many.corrupted)
    assert (again.names, again.severities, again.how) == (many.names, many.severities, many.how)


GROUPS = {
    "student": [{OWN: STUDENT, LINEAR: STUDENT}, {OWN: BASELINE, LINEAR: BASELINE}],
    "baseline": [{LINEAR: BASELINE}],
    "teacher": [{OWN: STUDENT, LINEAR: STUDENT}],
}


def test_a_summary_compares_with_the_first_reference_there_is():
    summary = json.loads(json.dumps(summarize(GROUPS), allow_nan=False))
    assert summary[OWN]["relative_to"] == "teacher"
    assert list(summary[OWN]["rows"]) == ["student", "teacher"]
    assert summary[LINEAR]["relative_to"] == "baseline"
    rows = summary[LINEAR]["rows"]
    assert "relative_error" not in rows["baseline"]
    assert rows["teacher"]["relative_error"] == pytest.approx((0.5 / 0.75 + 1) / 2)
    assert rows["student"]["runs"][0]["mean_corruption_error"] == pytest.approx(0.625)
    assert by_corruption(rows["student"]["runs"]) == {"fog": 0.375, "snow": 0.25}
    alone = summarize({"student": [{OWN: STUDENT}]})
    assert alone[OWN]["relative_to"] is None
    assert "relative_error" not in alone[OWN]["rows"]["student"]


def test_the_published_mce_is_relative_to_alexnet():
    # The noise is always wrong, all else is right: by hand 1 / 0.886428, of 15 corruptions.
    names = tuple(ALEXNET_ERRORS)
    hits = torch.ones(15, 5, 4, dtype=torch.bool)
    hits[0] = False
    whole = Robustness(names, (1, 2, 3, 4, 5), hits[1, 0], hits, "own classifier")
    assert published_mce([whole]) == pytest.approx(1.128122849 / 15)
    half = replace(
        whole, corrupted=torch.zeros_like(hits).index_fill(2, torch.tensor([0, 1]), True)
    )
    mean = sum(0.5 / error for error in ALEXNET_ERRORS.values()) / 15
    assert published_mce([half]) == pytest.approx(mean)
    assert published_mce([replace(whole, severities=(1, 2, 3, 4, 6))]) is None
    assert published_mce([STUDENT]) is None
    rows = summarize({"student": [{OWN: whole}]}, is_imagenet=True)
    assert "mce" not in summarize({"student": [{OWN: whole}]})[OWN]["rows"]["student"]
    assert rows[OWN]["rows"]["student"]["mce"] == pytest.approx(1.128122849 / 15)
    assert "| error relative to AlexNet (mCE) | 7.5     |" in tables(rows)[0]


def test_tables_are_for_people():
    own, linear = tables(summarize(GROUPS))
    assert own.startswith("Under corruptions, own classifier:")
    lines = {line.split("|")[1].strip(): line for line in linear.splitlines()[2:]}
    assert lines["clean"].split("|")[2].strip() == "75.0"
    assert lines["fog"].split("|")[2:5] == [" 37.5    ", " 25.0     ", " 50.0    "]
    assert lines["mean of corruptions"].split("|")[4].strip() == "37.5"
    assert lines["mean corruption error"].split("|")[4].strip() == "62.5"
    assert lines["kept of clean"].split("|")[4].strip() == "50.0"
    assert lines["error relative to the baseline"].split("|")[4].strip() == "83.3"
    assert "relative" not in tables(summarize({"student": [{OWN: STUDENT}]}))[0]
