"""Batches of random images, for the encoders of tests/fakes.py."""

import torch

from limbeck.records import Batch


def batches_of(images, size, labels=None):
    """Batches of at most ``size`` of the images, with labels if given."""
    batches = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        own = None if labels is None else labels[start : start + size]
        keys = tuple(str(start + index) for index in range(len(part)))
        batches.append(Batch(part, part, own, keys, torch.zeros(len(part), dtype=torch.int64)))
    return batches
