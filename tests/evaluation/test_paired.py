"""Two students image by image: the exact test, the bootstrap's coverage, and the words."""

import pytest
import torch
from scipy.stats import binomtest

from limbeck.evaluation.paired import bootstrap_interval, mcnemar, statement
from limbeck.evaluation.scores import score_of


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (8, 2), (2, 8), (40, 41), (700, 600)])
def test_mcnemar_is_the_binomial_test(b, c):
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected)


@pytest.mark.parametrize(("gain", "loss"), [(0.10, 0.10), (0.15, 0.05)])
def test_the_bootstrap_covers_what_it_says(gain, loss):
    generator = torch.Generator().manual_seed(0)
    trials, covered = 400, 0
    for _ in range(trials):
        draws = torch.rand(300, generator=generator, dtype=torch.float64)
        differences = (draws < gain).double() - (draws > 1 - loss).double()
        low, high = bootstrap_interval(differences, num_draws=400)
        covered += low <= gain - loss <= high
    # 95 % of 400 are 380; three standard deviations of their count are 13, and the percentiles of
    # few draws are a little narrow.
    assert 362 <= covered <= 393


def test_the_bootstrap_is_the_same_each_time():
    values = torch.linspace(-1, 1, 50)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(torch.ones(5)) == (1, 1)


def hits(text):
    return torch.tensor([letter == "1" for letter in text])


def test_single_runs_are_told_by_mcnemar():
    student, baseline = (score_of(hits(text), "x") for text in ("1" * 30, "1" * 20 + "0" * 10))
    said = statement([student], [baseline])
    assert said == (
        "Of 30 test images 10 are right with the student only and 0 with the baseline only: "
        "p = 0.002 (McNemar), so the images alone hardly explain it."
    )
    assert "p = 1 (McNemar), which may be luck" in statement([student], [student])
    many = score_of(hits("0" * 30), "x")
    assert "p = under 0.0001" in statement([student], [many])


def test_several_runs_are_told_by_the_bootstrap():
    runs = [score_of(hits(text), "x") for text in ("1110" * 10, "1111" * 10)]
    other = [score_of(hits("1000" * 10), "x")] * 2
    said = statement(runs, other)
    assert said.startswith("Drawing 40 test images again and again, the mean difference of these")
    assert said.endswith("points in 95 % (paired bootstrap), which leaves out 0.")
    assert statement(runs, runs).endswith(
        "+0.0 to +0.0 points in 95 % (paired bootstrap), which includes 0."
    )
