"""Logistic regression: scikit-learn's solution, the choice of L2, few labels, determinism."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from limbeck.evaluation import linear
from limbeck.evaluation.linear import (
    feature_scale,
    few_label_probes,
    fit_logistic,
    linear_probe,
    random_ranks,
    stratified_split,
)
from limbeck.evaluation.scores import is_in_top


def clouds(num, dim, num_classes, noise):
    """Features around a random centre per class, and the labels."""
    labels = torch.arange(num) % num_classes
    return torch.randn(num_classes, dim)[labels] + noise * torch.randn(num, dim), labels


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_the_solution_is_scikit_learn_s(l2):
    features, labels = clouds(300, 12, 4, noise=1.5)
    features = features.double()
    weight, bias = fit_logistic(
        features, labels, num_classes=4, l2=l2, tolerance=1e-9, max_iter=1000
    )
    theirs = LogisticRegression(C=1 / (l2 * 300), tol=1e-9, max_iter=1000)
    theirs.fit(features.numpy(), labels.numpy())
    torch.testing.assert_close(weight, torch.from_numpy(theirs.coef_), atol=1e-3, rtol=0)
    # The intercept has no penalty, so it is fixed only up to a constant over the classes.
    intercept = torch.from_numpy(theirs.intercept_)
    torch.testing.assert_close(bias - bias.mean(), intercept - intercept.mean(), atol=1e-3, rtol=0)


def test_float32_and_chunks_find_the_same_minimum(monkeypatch):
    features, labels = clouds(300, 12, 4, noise=1.5)
    options = dict(num_classes=4, l2=1e-2)
    exact = fit_logistic(features.double(), labels, tolerance=1e-9, **options)
    monkeypatch.setattr(linear, "CHUNK_ROWS", 77)
    found = fit_logistic(features, labels, **options)
    # Stopped at gradients of 1e-5 with a curvature of at least l2 = 1e-2.
    torch.testing.assert_close(found[0].double(), exact[0], atol=2e-3, rtol=0)


def test_the_gradient_vanishes_at_the_solution():
    features, labels = clouds(100, 5, 3, noise=1.0)
    x = features.double()
    weight, bias = fit_logistic(x, labels, num_classes=3, l2=0.05, tolerance=1e-8)
    excess = (x @ weight.T + bias).softmax(1) - torch.eye(3).double()[labels]
    gradient = excess.T @ x / 100 + 0.05 * weight
    assert gradient.abs().max() < 1e-6 and excess.mean(0).abs().max() < 1e-6


def test_a_probe_standardises_inside_and_speaks_of_raw_features():
    features, labels = clouds(200, 6, 3, noise=1.0)
    scale = torch.logspace(-3, 3, 6)
    plain = linear_probe(features, labels, num_classes=3, l2=1e-2)
    scaled = linear_probe(features * scale + 5 * scale, labels, num_classes=3, l2=1e-2)
    torch.testing.assert_close(
        scaled.logits(features * scale + 5 * scale), plain.logits(features), atol=5e-3, rtol=0
    )


def test_a_constant_feature_does_no_harm():
    features, labels = clouds(200, 6, 3, noise=0.1)
    features[:, 2] = 0.1
    mean, std = feature_scale(features)
    assert std[2] == 1 and mean[2] == pytest.approx(0.1)
    probe = linear_probe(features, labels, num_classes=3)
    assert is_in_top(probe.logits(features), labels).all()


def test_random_labels_are_chance_and_are_regularised_most():
    features, labels = torch.randn(1000, 20), torch.randint(0, 5, (1000,))
    probe = linear_probe(features[:500], labels[:500], num_classes=5)
    right = is_in_top(probe.logits(features[500:]), labels[500:]).float().mean()
    # p = 0.2 of 500: three standard deviations are 0.054.
    assert abs(right - 0.2) < 0.054


def test_the_choice_of_l2_pays_where_it_matters():
    # 200 samples, 100 features, of which five tell: a weak penalty learns the noise.
    labels = torch.randint(0, 2, (1200,))
    features = torch.randn(1200, 100)
    features[:, :5] += 0.8 * (labels[:, None] - 0.5)
    chosen = linear_probe(features[:200], labels[:200], num_classes=2)
    weakest = linear_probe(features[:200], labels[:200], num_classes=2, l2=1e-5)
    right, of_weakest = (
        float(is_in_top(probe.logits(features[200:]), labels[200:]).float().mean())
        for probe in (chosen, weakest)
    )
    assert chosen.l2 > 1e-2 and right > of_weakest + 0.03


def test_a_probe_is_the_same_every_time():
    features, labels = clouds(300, 12, 4, noise=3.0)
    first, second = (linear_probe(features, labels, num_classes=4) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and first.l2 == second.l2


def test_few_labels_take_that_many_per_class_and_nothing_else(monkeypatch):
    seen = []
    real = linear.fit_logistic
    monkeypatch.setattr(
        linear, "fit_logistic", lambda x, y, **rest: (seen.append(y), real(x, y, **rest))[1]
    )
    features, labels = clouds(90, 6, 3, noise=0.3)
    probes = few_label_probes(features, labels, num_classes=3, num_labels=4, num_draws=3)
    assert [chosen.bincount().tolist() for chosen in seen] == [[4, 4, 4]] * 3
    assert not torch.equal(probes[0].weight, probes[1].weight)
    assert all(is_in_top(probe.logits(features), labels).float().mean() > 0.9 for probe in probes)


def test_few_labels_of_a_small_class_are_all_it_has():
    labels = torch.tensor([0] * 10 + [1] * 2)
    probes = few_label_probes(torch.randn(12, 3), labels, num_classes=2, num_labels=5, num_draws=1)
    assert probes[0].l2 == pytest.approx(1 / 7)


def test_draws_depend_on_labels_and_seed_alone():
    labels = torch.randint(0, 7, (200,))
    torch.manual_seed(123)
    assert torch.equal(random_ranks(labels, seed=3), random_ranks(labels, seed=3))
    assert not torch.equal(random_ranks(labels, seed=3), random_ranks(labels, seed=4))
    for c in range(7):
        ranks = random_ranks(labels, seed=3)[labels == c]
        assert sorted(ranks.tolist()) == list(range(len(ranks)))


def test_a_split_is_stratified_and_complete():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 4)
    train, test = stratified_split(labels, test_ratio=0.2, seed=0)
    assert labels[test].bincount(minlength=3).tolist() == [10, 2, 0]
    assert sorted(torch.cat([train, test]).tolist()) == list(range(64))


def test_one_label_per_class_needs_no_held_out_part():
    features, labels = clouds(3, 6, 3, noise=0.0)
    probe = linear_probe(features, labels, num_classes=3)
    assert probe.l2 == pytest.approx(1 / 3)
    assert is_in_top(probe.logits(features), labels).all()


def test_five_thousand_images_take_few_passes(monkeypatch):
    features, labels = clouds(5000, 192, 10, noise=4.0)
    rows, loss = [], F.cross_entropy

    def counted(logits, *args, **kwargs):
        rows.append(len(logits))
        return loss(logits, *args, **kwargs)

    monkeypatch.setattr("limbeck.evaluation.linear.F.cross_entropy", counted)
    linear_probe(features, labels, num_classes=10)
    assert len(labels) < sum(rows) < 200 * len(labels)  # 72 when it was written
