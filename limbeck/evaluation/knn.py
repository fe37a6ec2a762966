"""The weighted kNN classifier: features as they are, nothing trained.

Protocol of DINO ("Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294),
after Wu et al. (arXiv 1805.01978): cosine similarity s to the k = 20 nearest training images, each
of which votes for its class with exp(s / 0.07).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.evaluation.neighbours import nearest


@dataclass(frozen=True)
class Votes:
    """``votes`` (n, C), not negative, of ``k`` neighbours: fewer than asked for in a small set."""

    votes: Tensor
    k: int


def knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Votes:
    """Class votes for test features (n, D) from train features (m, D) with labels (m,) int64.

    Runs on the tensors' device, in chunks. ``k`` is limited to the number of training images.
    """
    k = min(k, len(train_features))
    similarities, indices = nearest(test_features, train_features, k)
    votes = torch.zeros(len(test_features), num_classes, device=test_features.device)
    votes.scatter_add_(1, train_labels[indices], (similarities / temperature).exp().float())
    return Votes(votes=votes, k=k)
