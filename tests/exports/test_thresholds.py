"""Thresholds and temperatures on answers that can be counted by hand."""

import numpy as np
import pytest

from limbeck.exports.thresholds import best_temperature, best_threshold, confidences, f1_at


def logits_of(*shares):
    """Two classes; the first is answered with these probabilities."""
    share = np.array(shares)
    return np.log(np.stack([share, 1 - share], 1))


def test_confidences_are_the_largest_probabilities():
    assert confidences(logits_of(0.9, 0.2)) == pytest.approx([0.9, 0.8])
    assert confidences(np.array([[1000.0, 0.0]])) == pytest.approx([1.0])


def test_the_threshold_leaves_out_what_is_wrong():
    logits, labels = logits_of(0.95, 0.9, 0.8, 0.6, 0.55), np.array([0, 0, 0, 1, 1])
    threshold, f1 = best_threshold(logits, labels)
    assert (threshold, f1) == (pytest.approx(0.8), pytest.approx(2 * 3 / (3 + 5)))
    assert f1_at(logits, labels, threshold) == f1
    assert f1_at(logits, labels, 0.0) == pytest.approx(2 * 3 / (5 + 5))
    assert f1_at(logits, labels, 1.1) == 0


def test_equal_confidences_are_accepted_together():
    logits, labels = logits_of(0.8, 0.8, 0.8), np.array([0, 0, 1])
    assert best_threshold(logits, labels) == (pytest.approx(0.8), pytest.approx(4 / 6))


def test_the_temperature_gives_the_confidence_of_the_other():
    own = np.random.default_rng(0).normal(size=(50, 4))
    assert best_temperature(own, own) == pytest.approx(1, abs=1e-3)
    assert best_temperature(own / 3, own) == pytest.approx(1 / 3, rel=1e-3)
