"""The calibration error: against torchmetrics, and by hand."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from limbeck.evaluation.calibration import calibration_error, probabilities_of


@pytest.mark.parametrize("num_bins", [1, 10, 15])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 6.0])
def test_it_is_torchmetrics(num_bins, sharpness):
    generator = torch.Generator().manual_seed(0)
    logits = sharpness * torch.randn(500, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (500,), generator=generator)
    probabilities = probabilities_of(logits)
    theirs = multiclass_calibration_error(probabilities, labels, 7, num_bins, norm="l1")
    assert calibration_error(probabilities, labels, num_bins) == pytest.approx(float(theirs))


def test_by_hand():
    # Sure by 0.9 and right half of the time: 0.4; sure by 0.6 and always right: 0.4.
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert calibration_error(probabilities, torch.tensor([0, 1, 0, 1])) == pytest.approx(0.4)


def test_who_is_sure_and_right_has_none():
    assert calibration_error(torch.eye(3), torch.arange(3)) == 0
