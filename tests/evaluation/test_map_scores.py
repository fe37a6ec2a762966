"""mIoU with its interval, against a plain bootstrap."""

import numpy as np
import pytest
import torch

from limbeck.evaluation.map_scores import difference_of, result_of
from limbeck.evaluation.miou import Confusion


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


def test_the_mean_is_that_of_all_images_together():
    counts, found = random_counts(0)
    whole = Confusion(3)
    for confusion, *_ in found:
        whole.counts += confusion.counts
    result = result_of([counts])
    assert result.miou == pytest.approx(whole.score().miou)
    assert result.iou == pytest.approx(whole.score().iou.tolist())
    assert result.low < result.miou < result.high and result.spread is None


def test_the_interval_is_that_of_a_plain_bootstrap():
    counts, _ = random_counts(1)
    rng, drawn = np.random.default_rng(5), []
    for _ in range(2000):
        some = counts[rng.integers(0, 12, 12)].sum(0).double()
        drawn.append(float((some[0] / (some[1] + some[2] - some[0])).mean()))
    result = result_of([counts])
    assert (result.low, result.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)


def test_runs_and_differences():
    same, better = [random_counts(s)[0] for s in (2, 3)], [random_counts(s, 0.9)[0] for s in (2, 3)]
    assert result_of(better).spread > 0 and len(result_of(better).runs) == 2
    mean, low, high = difference_of(better, same)
    assert 0 < low < mean < high
    mean, low, high = difference_of(same, same)
    assert mean == low == high == 0
