"""Does a classifier mean what it says? Expected calibration error (arXiv 1706.04599, section 2)."""

import torch
from torch import Tensor

NUM_BINS = 15  # as in the paper


def calibration_error(probabilities: Tensor, labels: Tensor, num_bins: int = NUM_BINS) -> float:
    """How far, on the average, the largest probability is from the share of right answers.

    ``probabilities`` (n, C), rows of sum 1; ``labels`` (n,) int64. The answers are sorted into
    ``num_bins`` equal ranges of their confidence; the gap between mean confidence and accuracy of
    each counts as much as its answers are many. 0..1, 0 is best.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    is_right = (predicted == labels).double()
    place = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1  # ranges (low, high]
    gap = confidence.new_zeros(num_bins).index_add_(0, place, confidence - is_right)
    return float(gap.abs().sum() / len(labels))


def probabilities_of(logits: Tensor) -> Tensor:
    """Softmax of logits (n, C), in double precision."""
    return torch.softmax(logits.double(), dim=1)
