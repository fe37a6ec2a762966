"""The dense target of any soft labels, class by class."""

import torch


def dense_target(labels):
    """(B, C) float64: the stated probabilities, and the rest spread evenly."""
    B, K = labels.classes.shape
    others = max(1, labels.num_classes - K)
    target = torch.zeros(B, labels.num_classes, dtype=torch.float64)
    for image in range(B):
        target[image] = max(0.0, float(labels.rest[image])) / others
        for place, probability in zip(labels.classes[image], labels.probs[image], strict=True):
            target[image, place] = float(probability)
    return target
