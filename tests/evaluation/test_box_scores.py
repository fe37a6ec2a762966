"""Intervals of AP50: the same number as COCO's where every image counts once."""

import numpy as np
import pytest

from limbeck.evaluation.box_scores import (
    NUM_DRAWS,
    average_precision50,
    compare,
    result_of,
    tables,
)
from limbeck.evaluation.scores import better_than
from tests.evaluation.test_average_precision import made_up, ours


def without_crowds(found):
    return [
        (size, truth._replace(is_crowd=np.zeros(len(truth.boxes), bool)), answers)
        for size, truth, answers in found
    ]


def kept(seed, **options):
    # Fewer answers an image than COCO's hundred, which are cut there.
    scores = ours(without_crowds(made_up(seed, **options)))
    scores.images = [image for image in scores.images if len(image.scores) <= 100]
    return scores


@pytest.mark.parametrize("seed", range(4))
def test_it_is_coco_s_number_where_every_image_counts_once(seed):
    scores = kept(seed, num_images=20)
    found = average_precision50(scores.answers(), np.ones(len(scores.images), int))
    assert found == pytest.approx(scores.score().boxes["ap50"], abs=1e-12)


def test_an_image_that_counts_twice_is_there_twice():
    scores = kept(3)
    times = np.ones(len(scores.images), int)
    times[[0, 2]] = 2
    twice = kept(3)
    twice.images += [scores.images[0], scores.images[2]]
    found = average_precision50(scores.answers(), times)
    assert found == pytest.approx(twice.score().boxes["ap50"], abs=1e-12)


def test_results_of_runs_and_a_comparison():
    runs = [
        (each.score(), each.answers()) for each in (kept(0, num_images=30), kept(0, num_images=30))
    ]
    result = result_of(runs)
    assert result.spread == 0 and result.low <= result.scores["ap50"] <= result.high
    assert len(result.runs) == 2 and NUM_DRAWS >= 200
    verdict = compare(result, result, better_than("itself"))
    assert verdict.difference == 0 and verdict.low == verdict.high == 0
    assert np.array_equal(result.confusion, 2 * runs[0][0].confusion)
    assert result.best["f1"] == runs[0][0].f1 and result.thresholds == runs[0][0].thresholds
    text = tables({"student": result})
    assert "AP of a" in text and "ap75" in text
    assert f"from a score of {runs[0][0].threshold:.3f} on (F1 {100 * runs[0][0].f1:.1f} %" in text
    assert f"| b            | {result.confusion[1][0]}" in text
    assert result.plain()["of_classes"]["never"] is None
