"""Stored answers in the place of a teacher."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.targets import targets_class, total_variation
from limbeck.records import SoftLabels


def test_a_kind_of_a_later_version_is_named():
    with pytest.raises(UserError, match="'sounds'"):
        targets_class("sounds")


def soft_labels(probs, num_kept):
    kept = probs.topk(num_kept)
    return SoftLabels(kept.values, kept.indices, 1 - kept.values.sum(1), probs.shape[1])


def dense(labels):
    """Every class's probability, by the definition."""
    others = (labels.num_classes - labels.probs.shape[1]) or 1
    probs = (labels.rest / others)[:, None].repeat(1, labels.num_classes)
    return probs.scatter(1, labels.classes, labels.probs)


@pytest.mark.parametrize(("num_first", "num_second"), [(3, 3), (1, 1), (2, 5), (9, 9), (10, 10)])
def test_total_variation_is_that_of_all_classes(num_first, num_second):
    first = soft_labels(torch.randn(6, 10).mul(2).softmax(1), num_first)
    second = soft_labels(torch.randn(6, 10).mul(2).softmax(1), num_second)
    expected = 0.5 * (dense(first) - dense(second)).abs().sum(1)
    torch.testing.assert_close(total_variation(first, second), expected, rtol=0, atol=1e-6)
    same = total_variation(first, first)
    torch.testing.assert_close(same, torch.zeros(6), rtol=0, atol=1e-6)
