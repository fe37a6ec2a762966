"""mIoU with its interval, against a plain bootstrap."""

import numpy as np
import pytest
import torch

from limbeck.evaluation.map_scores import class_table, compare, joined, result_of
from limbeck.evaluation.miou import Confusion
from limbeck.evaluation.scores import better_than
from tests.recipes.runs import cells_of


def random_counts(seed, right=0.7, images=12):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(images):
        truth = rng.integers(0, 3, (8, 8))
        said = np.where(rng.random((8, 8)) < right, truth, rng.integers(0, 3, (8, 8)))
        confusion = Confusion(3)
        confusion.add(torch.tensor(said), torch.tensor(truth))
        found.append((confusion, said, truth))
    return torch.stack([each.of_images[0] for each, *_ in found]), found


NAMES = ("one", "two", "three")


def test_the_mean_is_that_of_all_images_together():
    counts, found = random_counts(0)
    whole = Confusion(3)
    for confusion, *_ in found:
        whole.counts += confusion.counts
    result = result_of([counts], NAMES)
    assert result.mean == pytest.approx(whole.score().miou)
    assert list(result.iou.values()) == pytest.approx(whole.score().iou.tolist())
    assert result.low < result.mean < result.high and result.spread is None
    assert result.plain().keys() == {"mean", "low", "high", "spread", "runs", "iou"}


def test_the_interval_is_that_of_a_plain_bootstrap():
    counts, _ = random_counts(1)
    rng, drawn = np.random.default_rng(5), []
    for _ in range(2000):
        some = counts[rng.integers(0, 12, 12)].sum(0).double()
        drawn.append(float((some[0] / (some[1] + some[2] - some[0])).mean()))
    result = result_of([counts], NAMES)
    assert (result.low, result.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)


def test_runs_are_judged_by_images_and_by_their_spread():
    same, better = (
        [result_of([random_counts(s, right)[0]], NAMES) for s in (2, 3)] for right in (0.7, 0.9)
    )
    both = joined(better)
    assert both.spread > 0 and both.runs == tuple(each.mean for each in better)
    claims = better_than("it")
    found = compare(better, same, claims)
    assert found.kind == "helped" and 0 < found.low < found.difference < found.high
    assert "over 2 and 2 training runs, 12 test images" in found.why
    single = compare(better[:1], same[:1], claims)
    assert "a single training run is not covered" in single.why
    assert single.high - single.low < found.high - found.low
    assert compare([both], [joined(same)], claims) == found
    equal = compare(same[:1], same[:1], claims)
    assert equal.kind == "did not help" and equal.low == equal.high == 0


def test_a_class_that_is_nowhere_has_no_number():
    counts = torch.zeros(2, 3, 3, dtype=torch.int64)
    counts[..., 0], counts[..., 1] = 4, torch.tensor([2, 4, 4])
    result = result_of([counts], NAMES)
    assert result.iou == {"one": 1.0, "two": pytest.approx(1 / 3), "three": None}
    mean, *by_class = cells_of(class_table({"student": result, "teacher": result}))
    assert mean == {"IoU %": "mean", "student": result.text, "teacher": result.text}
    assert result.text == "66.7 [66.7, 66.7]"
    assert [row["teacher"] for row in by_class] == ["100.0", "33.3", ""]
