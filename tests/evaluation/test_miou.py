"""mIoU: golden numbers, sums over images of any size, absent classes, and torchmetrics."""

import pytest
import torch

from limbeck.errors import RunError
from limbeck.evaluation.miou import Confusion
from limbeck.records import IGNORE

LABELS = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 255], [2, 1, 0, 255]])
PREDICTED = torch.tensor([[0, 1, 1, 1], [2, 0, 0, 3], [2, 1, 0, 2]])


def test_golden_numbers():
    """Golden row 10: sums over both images, not the mean of their scores."""
    confusion = Confusion(4)
    confusion.add(PREDICTED, LABELS)
    counts, score = confusion.counts, confusion.score()
    assert counts.diagonal().tolist() == [2, 3, 2, 0]
    assert (counts.sum(0) + counts.sum(1) - counts.diagonal()).tolist() == [4, 4, 3, 0]
    found = (score.miou, score.macc, score.aacc)
    assert found == pytest.approx((0.6388889, 0.7777778, 0.7777778), abs=1e-7)
    confusion.add(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 0], [1, 255]]))
    score = confusion.score()
    found = (score.miou, score.macc, score.aacc)
    assert found == pytest.approx((0.6111111, 0.7555556, 0.75), abs=1e-7)


def test_a_class_that_was_only_predicted_counts_as_0():
    confusion = Confusion(3)
    confusion.add(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))
    score = confusion.score()
    assert score.iou[:2].tolist() == [0.5, 0.0] and score.iou[2].isnan()
    assert score.miou == 0.25
    assert score.acc[0] == 0.5 and score.acc[1:].isnan().all() and score.macc == 0.5


def test_torchmetrics_says_the_same():
    metrics = pytest.importorskip("torchmetrics")
    usual = metrics.JaccardIndex("multiclass", num_classes=7, average="macro", ignore_index=IGNORE)
    confusion = Confusion(7)
    for size in ((9, 11), (30, 4), (1, 1)):
        labels = torch.randint(0, 6, size)  # one class is in no image
        labels[torch.rand(size) < 0.2] = IGNORE
        predicted = torch.randint(0, 6, size)
        confusion.add(predicted, labels)
        usual.update(predicted[None], labels[None])
    assert confusion.score().miou == pytest.approx(float(usual.compute()), abs=1e-6)


def test_small_integers_and_more_pixels_than_a_float_counts():
    confusion = Confusion(200)
    confusion.add(torch.full((4, 4), 199, dtype=torch.uint8), torch.full((4, 4), 199))
    assert confusion.counts[199, 199] == 16 and confusion.counts.dtype == torch.int64
    confusion.counts[199, 199] = 2**24
    confusion.add(torch.tensor([199]), torch.tensor([199]))
    assert confusion.counts[199, 199] == 2**24 + 1


def test_what_can_not_be_scored():
    with pytest.raises(RunError, match="No pixel has a label"):
        Confusion(2).score()
    with pytest.raises(RunError, match="A prediction is a class from 0 to 2, and there are 2"):
        Confusion(2).add(torch.tensor([0, 2]), torch.tensor([0, 1]))
    with pytest.raises(RunError, match="A label is a class from -1 to 1"):
        Confusion(2).add(torch.tensor([0, 1]), torch.tensor([-1, 1]))
    with pytest.raises(ValueError, match="labels"):
        Confusion(2).add(torch.zeros(2, 2), torch.zeros(2, 3))
