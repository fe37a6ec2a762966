"""The weighted kNN classifier: features as they are, nothing trained.

Protocol of DINO ("Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294),
after Wu et al. (arXiv 1805.01978): cosine similarity s to the k = 20 nearest training images, each
of which votes for its class with exp(s / 0.07).
"""

import torch
from torch import Tensor

from limbeck.evaluation.neighbours import nearest


def knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> tuple[Tensor, int]:
    """Class votes (n, C), not negative, for test features (n, D), and of how many neighbours.

    From train features (m, D) with labels (m,) int64, on the tensors' device, in chunks. ``k`` is
    limited to the number of training images.
    """
    k = min(k, len(train_features))
    similarities, indices = nearest(test_features, train_features, k)
    votes = torch.zeros(len(test_features), num_classes, device=test_features.device)
    votes.scatter_add_(1, train_labels[indices], (similarities / temperature).exp().float())
    return votes, k
