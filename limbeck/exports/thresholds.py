"""From which confidence on an answer is accepted, before and after: int8 squeezes confidences."""

import numpy as np


def best_threshold(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The least confidence at which to accept an answer, and its F1.

    Precision is of the accepted answers, recall of all images that should be answered right: all.
    """
    confidence, is_right = confidences(logits), logits.argmax(1) == labels
    order = np.argsort(-confidence, kind="stable")
    right = np.cumsum(is_right[order])
    f1 = 2 * right / (np.arange(1, len(labels) + 1) + len(labels))
    f1[:-1][np.diff(confidence[order]) == 0] = -1  # the same confidence is accepted together
    place = int(f1.argmax())
    return float(confidence[order][place]), float(f1[place])


def f1_at(logits: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    """F1 of the answers whose confidence is at least ``threshold``."""
    accepted = confidences(logits) >= threshold
    right = accepted & (logits.argmax(1) == labels)
    return float(2 * right.sum() / (accepted.sum() + len(labels)))


def confidences(logits: np.ndarray) -> np.ndarray:
    """The largest of each row's probabilities."""
    return 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)


def best_temperature(own: np.ndarray, other: np.ndarray) -> float:
    """What to divide ``own`` logits by so that the mean confidence is that of ``other``."""
    low, high = 0.1, 10.0
    wanted = confidences(other).mean()
    for _ in range(40):  # confidence falls as the temperature rises
        middle = (low * high) ** 0.5
        low, high = (middle, high) if confidences(own / middle).mean() > wanted else (low, middle)
    return float((low * high) ** 0.5)
