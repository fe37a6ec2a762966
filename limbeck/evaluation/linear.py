"""Linear probes: multinomial logistic regression on frozen features, with all or with few labels.

The objective is that of scikit-learn's LogisticRegression with C = 1 / (l2 * n):
mean over the n samples of the cross entropy + l2 / 2 * (sum of squared weights), bias left out,
minimised to convergence by L-BFGS, so that a score depends on the features and on nothing else.

Differs from MAE's linear probing (arXiv 2111.06377), which trains one layer after a BatchNorm
without weights for 90 epochs of random crops, by LARS in batches of 16,384: there the score depends
on the schedule, too. Here features of centre crops are standardised once instead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

L2_GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # decades around the optimum of standardised features
CHUNK_ROWS = 65536  # bounds the logits in memory: 65,536 x 1,000 classes are 250 MiB


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe on raw features: ``weight`` (C, D), ``bias`` (C,); ``l2`` as used."""

    weight: Tensor
    bias: Tensor
    l2: float

    def logits(self, features: Tensor) -> Tensor:
        """Class logits (n, C) of features (n, D)."""
        return F.linear(features, self.weight, self.bias)


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    l2: float,
    start: tuple[Tensor, Tensor] | None = None,
    max_iter: int = 200,
    tolerance: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) that minimise the objective for features (n, D), labels (n,).

    Deterministic: it begins at zero, or at ``start``, a solution nearby. ``tolerance`` is the
    largest gradient entry at which it stops. Computes in the features' type and on their device.
    """
    if start is None:
        start = features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes)
    weight, bias = (part.clone().requires_grad_() for part in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iter,
        tolerance_grad=tolerance,
        tolerance_change=1e-4 * tolerance,  # 1e-9, the default of L-BFGS, at 1e-5
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = l2 / 2 * weight.square().sum()
        total.backward()
        for rows, targets in zip(features.split(CHUNK_ROWS), labels.split(CHUNK_ROWS), strict=True):
            part = F.cross_entropy(F.linear(rows, weight, bias), targets, reduction="sum")
            part = part / len(features)
            part.backward()
            total = total.detach() + part.detach()
        return total.detach()

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()


def linear_probe(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    l2: float | None = None,
    seed: int = 0,
    max_iter: int = 200,
) -> LinearProbe:
    """Fit a probe on training features (n, D), standardised inside, with labels (n,) int64.

    ``l2`` None chooses it from a grid by the top-1 on a fifth of the *training* images, drawn from
    ``seed`` within each class, and then fits again on all of them.
    """
    mean, std = feature_scale(features)
    scaled = (features - mean) / std
    if l2 is None:
        l2 = _choose_l2(scaled, labels, num_classes, seed, max_iter)
    weight, bias = fit_logistic(scaled, labels, num_classes=num_classes, l2=l2, max_iter=max_iter)
    return _on_raw(weight, bias, mean, std, l2)


def few_label_probes(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    num_labels: int,
    num_draws: int,
    seed: int = 0,
) -> list[LinearProbe]:
    """One probe per draw of ``num_labels`` labels per class (all, where a class has fewer).

    The draws depend on ``labels``, ``seed`` and nothing else: two encoders asked about the same
    images are given the same labels. The features are standardised by all training images, which
    needs no label. The L2 strength is scikit-learn's default C = 1: there is nothing to choose it
    on.
    """
    mean, std = feature_scale(features)
    probes = []
    for draw in range(num_draws):
        ranks = random_ranks(labels, seed=seed + draw)
        chosen = (ranks < num_labels).nonzero().squeeze(1)
        l2 = 1 / len(chosen)
        weight, bias = fit_logistic(
            (features[chosen] - mean) / std, labels[chosen], num_classes=num_classes, l2=l2
        )
        probes.append(_on_raw(weight, bias, mean, std, l2))
    return probes


def feature_scale(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) over features (n, D); 1 where a feature is constant."""
    std, mean = torch.std_mean(features, dim=0, correction=0)
    # Rounding leaves a constant feature with a tiny deviation, which would be blown up to noise.
    is_constant = std <= 1e-6 * mean.abs()
    return mean, std.masked_fill(is_constant, 1.0)


def random_ranks(labels: Tensor, *, seed: int) -> Tensor:
    """(n,) int64: the place, from 0, of each sample in a random order of its class's samples."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator).to(labels.device)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    first = counts.cumsum(0) - counts
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels), device=labels.device) - first[labels[order]]
    return ranks


def stratified_split(labels: Tensor, *, test_ratio: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a train and a test part, the same ratio in every class (rounded down for test)."""
    num_test = (labels.bincount() * test_ratio).floor()
    is_test = random_ranks(labels, seed=seed) < num_test[labels]
    return (~is_test).nonzero().squeeze(1), is_test.nonzero().squeeze(1)


def _choose_l2(scaled: Tensor, labels: Tensor, num_classes: int, seed: int, max_iter: int) -> float:
    train, held_out = stratified_split(labels, test_ratio=0.2, seed=seed)
    if not len(held_out):  # fewer than five labels in every class
        return 1 / len(labels)
    best, best_right, start = L2_GRID[0], -1, None
    # From strong to weak, each solution the start of the next; a tie keeps the stronger. The
    # weakest are by far the slowest, so two decades without a gain end the search.
    for l2 in L2_GRID:
        if best_right >= 0 and l2 < best / 500:
            break
        start = fit_logistic(
            scaled[train],
            labels[train],
            num_classes=num_classes,
            l2=l2,
            start=start,
            max_iter=max_iter,
        )
        right = int((F.linear(scaled[held_out], *start).argmax(1) == labels[held_out]).sum())
        if right > best_right:
            best, best_right = l2, right
    return best


def _on_raw(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor, l2: float) -> LinearProbe:
    weight = weight / std
    return LinearProbe(weight=weight, bias=bias - weight @ mean, l2=l2)
