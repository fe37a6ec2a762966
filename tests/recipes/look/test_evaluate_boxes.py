"""``limbeck evaluate`` of detectors: scores with their interval, a baseline, what does not fit."""

import json
from dataclasses import replace

import pytest

from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.models.finished import read_record
from limbeck.recipes.look.evaluate import EvaluateConfig, evaluate, report
from limbeck.recipes.train.detect import detect
from tests.recipes.objects import detect_config, draw_objects


@pytest.fixture(scope="module")
def poor(objects, tmp_path_factory):
    config = detect_config(objects, tmp_path_factory.mktemp("poor") / "run", seed=1)
    return detect(replace(config, train=replace(config.train, epochs=1)))


def config_of(objects, detector, **changes):
    data = DataOptions(root=str(objects), holdout_ratio=0.25, num_workers=0)
    return EvaluateConfig(student=(str(detector),), data=data, measure_speed=False, **changes)


def test_scores_are_those_of_the_run_and_a_baseline_is_worse(objects, detector, poor, tmp_path):
    config = config_of(objects, detector, baseline=(str(poor),), out=tmp_path / "said")
    found = evaluate(config)
    record = read_record(detector)[1]["scores"]
    assert found.results["student"].scores["ap"] == pytest.approx(record["ap"], abs=1e-6)
    assert found.verdict.kind == "helped" and "Better than the baseline" in found.verdict.why
    text = report(found)
    for words in ("AP50 %", "ap_small", "AP of bright", "M params"):
        assert words in text
    plain = json.loads((tmp_path / "said" / "scores.json").read_text())
    student = plain["results"]["student"]
    assert student["low"] <= student["scores"]["ap50"] <= student["high"]
    assert "answers" not in student


def test_images_of_another_place_are_read_by_looking(detector, tmp_path):
    other = draw_objects(tmp_path / "other", 10)
    found = evaluate(config_of(other, detector))
    assert 0 <= found.results["student"].scores["ap50"] <= 1


def test_what_does_not_fit_is_told(objects, scenes, detector, segmenter, tmp_path):
    with pytest.raises(UserError, match="is no detector, as the student is"):
        evaluate(config_of(objects, detector, baseline=(str(segmenter),)))
    with pytest.raises(UserError, match="k has no effect on a detector"):
        evaluate(config_of(objects, detector, k=3))
    with pytest.raises(UserError, match="There are no boxes in"):
        evaluate(config_of(scenes, detector))
