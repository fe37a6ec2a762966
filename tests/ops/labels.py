"""Soft labels to test with: peaked ones, as teachers give them, and the dense target of any."""

import torch

LEVELS = {
    (21841, 100): {"A": (20.0, 6), "B": (15.0, 8), "C": (11.5, 10)},
    (1000, 10): {"A": (18.5, 4), "B": (13.5, 8), "C": (10.5, 8)},
}
"""(classes, K) -> sharpness -> height and decay of the cluster."""


def peaked_logits(num_images, num_classes, height, decay):
    """A Gaussian background, and a decaying cluster of 50 related classes, (num_images, C)."""
    cluster = torch.rand(num_images, num_classes).argsort(dim=1)[:, :50]
    bump = height * torch.exp(-torch.arange(50) / decay) + torch.randn(num_images, 50)
    return torch.randn(num_images, num_classes).scatter_add_(1, cluster, bump)


def dense_target(labels):
    """(B, C) float64: the stated probabilities, and the rest spread evenly, class by class."""
    B, K = labels.classes.shape
    others = max(1, labels.num_classes - K)
    target = torch.zeros(B, labels.num_classes, dtype=torch.float64)
    for image in range(B):
        target[image] = max(0.0, float(labels.rest[image])) / others
        for place, probability in zip(labels.classes[image], labels.probs[image], strict=True):
            target[image, place] = float(probability)
    return target


def divergence(target, recovered):
    """KL(target || recovered) of each image in float64; recovered ones of at least 1e-12."""
    target, recovered = target.double(), recovered.clamp(min=1e-12)
    return torch.special.xlogy(target, target / recovered).sum(dim=1)
