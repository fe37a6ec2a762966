"""Intervals against published values, paired comparisons, and every kind of verdict."""

import json

import pytest
import torch

from limbeck.errors import UserError
from limbeck.evaluation.scores import (
    better_than,
    compare,
    is_in_top,
    paired_sampling_error,
    score_of,
    t_quantile,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("right", "num", "low", "high"),
    [  # Newcombe, Statistics in Medicine 1998, page 857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval(right, num, low, high):
    assert wilson_interval(right / num, num) == pytest.approx((low, high), abs=5e-5)


def test_a_score_of_no_images_is_refused():
    with pytest.raises(UserError, match="at least one test image"):
        wilson_interval(0.5, 0)


@pytest.mark.parametrize(
    ("df", "expected"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (10, 2.22814), (30, 2.04227)],
)
def test_t_quantile(df, expected):
    assert t_quantile(df) == pytest.approx(expected, rel=1e-4)


def test_t_quantile_meets_the_normal_one():
    assert t_quantile(9_999) == pytest.approx(t_quantile(10_001), abs=1e-3)


def test_top_k():
    logits = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1], [0.0, 1.0, 2.0]])
    labels = torch.tensor([2, 0, 0])
    assert is_in_top(logits, labels).tolist() == [False, True, False]
    assert is_in_top(logits, labels, 2).tolist() == [True, True, False]
    assert is_in_top(logits, labels, 5).all()


def test_a_score_of_one_run_has_wilson_s_interval():
    is_right = torch.arange(263) < 81
    score = score_of(is_right, "top-1")
    assert (score.mean, score.low, score.high) == pytest.approx((0.30798, 0.2553, 0.3662), abs=5e-5)
    assert score.spread is None and score.num_test == 263


def test_a_score_of_several_runs_covers_them_and_the_images():
    runs = torch.stack([torch.arange(1000) < right for right in (700, 720, 740)])
    score = score_of(runs, "few labels")
    assert score.mean == pytest.approx(0.72) and score.spread == pytest.approx(0.02)
    of_runs = 4.30265 * 0.02 / 3**0.5
    of_images = 0.72 - wilson_interval(0.72, 1000)[0]
    assert score.mean - score.low == pytest.approx((of_runs**2 + of_images**2) ** 0.5, rel=1e-4)
    torch.testing.assert_close(score.per_image, runs.float().mean(0))


def test_an_interval_covers_as_often_as_it_says():
    """Both kinds of luck are drawn: 400 experiments of 4 runs on 200 images."""
    covered = 0
    for _ in range(400):
        luck = 0.7 + 0.03 * torch.randn(4, 1)
        score = score_of(torch.rand(4, 200) < luck, "simulated")
        covered += score.low <= 0.7 <= score.high
    assert 0.93 < covered / 400 <= 1  # the two parts overlap a little: wide rather than narrow


def test_a_score_is_plain_data():
    plain = score_of(torch.ones(4, dtype=torch.bool), "top-1").plain()
    assert json.loads(json.dumps(plain)) == plain and "per_image" not in plain


def test_equal_models_are_no_surprise_and_no_certainty():
    same = torch.tensor([True, False] * 5)
    found = compare([score_of(same, "")], [score_of(same, "")])
    assert found.kind == "too close to tell" and found.difference == 0
    assert found.low < -0.1 and found.high > 0.1  # ten images can't prove a tie


def test_the_paired_error_is_agresti_and_min_s():
    student = torch.tensor([1, 1, 1, 0, 1, 0, 0, 1]).bool()
    baseline = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0]).bool()
    b, c, n = 3 + 0.5, 1 + 0.5, 8 + 2
    expected = ((b + c) - (b - c) ** 2 / n) ** 0.5 / n
    assert paired_sampling_error(student, baseline) == pytest.approx(expected)


def runs(*shares, num=1000):
    """One score per training run: the first ``shares`` of the images are right."""
    return [score_of(torch.arange(num) < round(share * num), "") for share in shares]


def test_helped():
    found = compare(runs(0.95, 0.96, 0.955), runs(0.80, 0.82, 0.81))
    assert found.kind == "helped" and found.difference == pytest.approx(0.145)
    assert "over 3 and 3 training runs, 1,000 test images" in found.why
    assert "95.5 % with it, 81.0 % without" in found.why and "+14.5 points" in found.why


def test_did_not_help_because_worse():
    found = compare(runs(0.60, 0.61), runs(0.80, 0.81))
    assert found.kind == "did not help"
    assert found.why.startswith("Distillation did not help: 60.5 % with it, 80.5 % without, ")


def test_a_baseline_that_says_nothing_of_distillation_is_not_said_to():
    claims = better_than("untrained weights")
    better, worse = compare(runs(0.9), runs(0.5), claims), compare(runs(0.5), runs(0.9), claims)
    assert (better.kind, worse.kind) == ("helped", "did not help")
    assert better.why.startswith("Better than untrained weights: 90.0 % against 50.0 %, ")
    assert worse.why.startswith("Not better than untrained weights: 50.0 % against 90.0 %, ")


def test_did_not_help_because_surely_equal():
    found = compare(runs(0.9000, 0.9001, num=1_000_000), runs(0.9000, 0.9002, num=1_000_000))
    assert found.kind == "did not help" and abs(found.difference) < 0.005


def test_too_close_because_runs_differ_more_than_the_gain():
    noisy = compare(runs(0.70, 0.90, num=100_000), runs(0.68, 0.86, num=100_000))
    assert noisy.kind == "too close to tell"
    # Welch by hand: s1^2/2 = 0.01, s2^2/2 = 0.0081, df = 1.9784, t = 4.3474 (images add nothing).
    assert noisy.high - noisy.difference == pytest.approx(4.347 * 0.0181**0.5, rel=2e-3)


def test_too_close_because_test_images_are_few():
    found = compare(runs(0.83, num=100), runs(0.80, num=100))
    assert found.kind == "too close to tell"
    assert found.why.startswith("It is too close to tell: 83.0 % against 80.0 %, ")
    assert (
        "for the choice of 100 test images only: the luck of a single training run is not covered"
        in found.why
    )


def test_one_run_against_several_says_what_is_not_covered():
    assert "not covered" in compare(runs(0.9), runs(0.5, 0.6)).why


def test_label_draws_are_luck_too():
    """Student and baseline take turns in winning by a lot, on very many images."""
    shares = torch.tensor([[0.5, 0.9, 0.5, 0.9], [0.9, 0.5, 0.8, 0.4]])
    student, baseline = (
        score_of(torch.arange(10_000) < 10_000 * of_draw[:, None], "few") for of_draw in shares
    )
    found = compare([student], [baseline])
    # The paired differences are -0.4, 0.4, -0.3, 0.5: t(3) = 3.18245 times 0.46547 / 2.
    assert found.kind == "too close to tell"
    assert found.high - found.difference == pytest.approx(3.18245 * 0.46547 / 2, rel=1e-3)
    assert "10,000 test images and 4 draws of labels only" in found.why


def test_draws_that_always_agree_on_the_winner_are_no_doubt():
    baseline = torch.stack([torch.arange(1000) < right for right in (300, 500, 700)])
    student = torch.stack([torch.arange(1000) < right for right in (340, 540, 745)])
    found = compare([score_of(student, "")], [score_of(baseline, "")])
    assert found.kind == "helped"  # though each side alone is spread over 40 points


def test_scores_of_different_test_sets_are_not_compared():
    with pytest.raises(UserError, match="different test images"):
        compare([score_of(torch.ones(5), "")], [score_of(torch.ones(6), "")])
