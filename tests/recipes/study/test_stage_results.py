"""Table, verdict and data of two stages, from scores that are made up."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limbeck.evaluation.robustness import Robustness
from limbeck.evaluation.scores import score_of
from limbeck.recipes.study.results import Result
from limbeck.recipes.study.stage_results import (
    TwoStages,
    report,
    table_of,
    verdict_of,
)
from limbeck.recipes.study.stage_two.classify import CLASSIFY
from limbeck.recipes.study.stages import ARMS
from tests.recipes.runs import cells_of

COST = {"parameters": 5e6, "macs": 1.25e9, "tuning_seconds": 60.0}


def measured(right, **cost):
    hits = torch.arange(1000) < 1000 * right
    return Result({"top1": score_of(hits, "top-1")}, COST | cost)


def found(out, *, teacher=0.8, **tops):
    arms = [ARMS[name] for name in tops]
    results = {
        name: {seed: measured(each, images_per_second=100.0) for seed, each in enumerate(values)}
        for name, values in tops.items()
    }
    known = teacher and measured(teacher)
    return TwoStages(out, arms, ["All equal."], results, task=CLASSIFY, teacher=known)


def test_the_table_has_means_spreads_and_shares_of_the_teacher():
    stages = found(Path("out"), both=(0.7, 0.74), generic=(0.6, 0.6))
    stages.results["both"][0].cost["stage_one_seconds"] = 900.0
    stages.results["both"][1].cost["stage_one_seconds"] = 900.0
    teacher, both, generic = cells_of(table_of(stages))
    assert teacher["network"] == "teacher" and teacher["top-1 %"] == "80.0"
    assert teacher["of the teacher's %"] == "-" and teacher["runs"] == "1"
    assert both["top-1 %"] == "72.0 ± 2.8" and both["of the teacher's %"] == "90.0 ± 3.5"
    assert both["stage one, min"] == "15.0 ± 0.0" and both["runs"] == "2"
    assert (both["M params"], both["G MACs"], both["images/s"]) == ("5.00", "1.25", "100")
    assert generic["stage one, min"] == "-" and generic["fine-tuning, min"] == "1.0 ± 0.0"
    assert "top-5 %" not in both


def test_answers_under_corruptions_have_a_column_and_a_table():
    stages = found(Path("out"), both=(0.7,))
    hits = torch.ones(1, 2, 4, dtype=torch.bool)
    answers = Robustness(("fog",), (1, 5), torch.ones(4, dtype=torch.bool), hits, "own classifier")
    result = stages.results["both"][0]
    result.scores["corrupted_top1"] = answers.score
    stages.results["both"][0] = replace(result, corrupted={"corrupted_top1": answers})
    assert cells_of(table_of(stages))[1]["corrupted %"] == "100.0"
    assert stages.plain()["corrupted"]["corrupted_top1"]["rows"].keys() == {"both"}
    assert "| fog " in report(stages)


def test_without_a_teacher_there_is_no_share():
    (row,) = cells_of(table_of(found(Path("out"), teacher=None, generic=(0.5,))))
    assert row["network"] == "generic" and "of the teacher's %" not in row


@pytest.mark.parametrize(
    ("generic", "specific", "said"),
    [
        (0.5, 0.6, "two stages helped over 'generic' alone and 'specific' alone."),
        (0.9, 0.6, "helped over 'specific' alone, and did not help over 'generic' alone."),
        (0.798, 0.6, "and are too close to tell from 'generic' alone."),
    ],
)
def test_the_verdict_is_on_each_single_stage(generic, specific, said):
    text = verdict_of(found(Path("out"), both=(0.8,), generic=(generic,), specific=(specific,)))
    assert text.splitlines()[0].startswith("Verdict: two stages ") and said in text
    lines = text.splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["- Against 'generic'", "- Against 'specific'"]
    assert all("points (95 % interval" in line for line in lines)


def test_what_is_not_known_is_said():
    assert "--arms fine-tune specific generic both" in verdict_of(found(Path("out"), both=(0.8,)))
    with_labels = verdict_of(found(Path("out"), both=(0.8,), **{"fine-tune": (0.5,)}))
    assert with_labels.startswith(
        "- Against 'fine-tune': Two stages are better than neither: 80.0 % against 50.0 %"
    )


def test_the_student_is_that_of_the_most_stages_and_the_first_seed(tmp_path):
    stages = found(tmp_path, **{"fine-tune": (0.5,), "both": (0.8, 0.7), "generic": (0.6,)})
    text = report(stages)
    assert f"The student is in {tmp_path}/seed_0/both (seed 0 of 2" in text
    assert f"limbeck evaluate --student {tmp_path}/seed_0/both" in text
    only = found(tmp_path, generic=(0.6,), specific=(0.7,))
    assert only.student == tmp_path / "seed_0" / "specific"


def test_table_and_data_are_written(tmp_path):
    stages = found(tmp_path, both=(0.8,), generic=(0.6,))
    stages.write()
    data = json.loads((tmp_path / "two_stage.json").read_text())
    assert data["verdicts"]["generic"]["kind"] == "helped"
    assert data["arms"]["both"]["0"]["folder"] == str(tmp_path / "seed_0" / "both")
    assert data["teacher"]["scores"]["top1"]["mean"] == 0.8
    assert report(stages).startswith((tmp_path / "table.md").read_text().strip())
