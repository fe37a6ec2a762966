"""The weighted kNN classifier against a loop, and known cases."""

import math

import torch

from limbeck.evaluation.knn import knn
from limbeck.evaluation.scores import is_in_top


def test_votes_are_those_of_the_formula():
    train, labels, test = torch.randn(30, 6), torch.arange(30) % 4, torch.randn(9, 6)
    found, k = knn(train, labels, test, num_classes=4, k=5)
    for row, query in zip(found, test.double(), strict=True):
        votes = [0.0] * 4
        cosine = [float(query @ x / (query.norm() * x.norm())) for x in train.double()]
        for i in sorted(range(30), key=lambda j: -cosine[j])[:5]:
            votes[labels[i]] += math.exp(cosine[i] / 0.07)
        # rtol: an error of 1e-7 in a cosine is fourteen times as large in the exponent.
        torch.testing.assert_close(row.double(), torch.tensor(votes).double(), rtol=1e-4, atol=0)
    assert k == 5


def test_separable_classes_are_all_right_and_random_labels_are_chance():
    centres = 10 * torch.eye(10)
    labels = torch.arange(2000) % 10
    features = centres[labels] + torch.randn(2000, 10)
    votes = knn(features[:1000], labels[:1000], features[1000:], num_classes=10)[0]
    assert is_in_top(votes, labels[1000:]).all()
    mixed = torch.randint(0, 10, (2000,))
    votes = knn(features[:1000], mixed[:1000], features[1000:], num_classes=10)[0]
    # p = 0.1 of 1,000: three standard deviations are 0.03.
    assert abs(is_in_top(votes, mixed[1000:]).float().mean() - 0.1) < 0.03


def test_k_is_limited_to_the_training_images():
    found, k = knn(torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.randn(2, 4), num_classes=3)
    assert k == 3 and (found > 0).all()
