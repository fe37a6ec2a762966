"""Batch norm with fixed statistics: trained, but never updated."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.batch_norm import FixedBatchNorm, fix_batch_norm
from limbeck.records import Tap
from tests.models.families import small_encoder, small_images


def test_statistics_stay_and_weights_are_trained():
    encoder = small_encoder("tiny-vit")
    images, tap = small_images(), Tap("logits")
    expected = encoder(images, taps=(tap,)).taps[tap]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    fix_batch_norm(encoder)
    assert encoder.state_dict().keys() == before.keys()
    encoder.train()
    found = encoder(images, taps=(tap,)).taps[tap]
    torch.testing.assert_close(found, expected)  # as in evaluation
    found.square().sum().backward()
    assert all(torch.equal(value, before[n]) for n, value in encoder.state_dict().items())
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(isinstance(norm, FixedBatchNorm) for norm in norms) and len(norms) == 18
    assert all(norm.weight.grad.abs().sum() > 0 for norm in norms)


def test_a_network_without_batch_norm_is_refused():
    with pytest.raises(UserError, match="no batch norm .*leave --freeze-batch-norm out"):
        fix_batch_norm(small_encoder("augreg"))
