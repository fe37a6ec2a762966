"""Detectors of every kind of head on an encoder: seeds, sizes, what is left out."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.dense.build_detector import build_detector
from limbeck.models.options import DetectorOptions
from tests.models.dense.test_light_detector import small
from tests.models.families import small_encoder


def test_the_backbone_is_copied_and_the_rest_starts_from_the_seed():
    encoder = small_encoder("augreg")
    first, same, other = (
        build_detector(encoder, 3, DetectorOptions(width=16), seed, (64, 64)) for seed in (0, 0, 1)
    )
    for name, value in first.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert not torch.equal(
        first.pyramid.lateral[0].conv.weight, other.pyramid.lateral[0].conv.weight
    )
    own = encoder.model.blocks[0].mlp.fc1.weight
    copied = first.backbone.model.blocks[0].mlp.fc1.weight
    assert torch.equal(own, copied) and own is not copied
    assert isinstance(first.backbone.model.head, torch.nn.Identity)
    assert isinstance(first.backbone.model.norm, torch.nn.Identity)


def test_two_scales_are_too_few():
    with pytest.raises(UserError, match="has 2 scales, and a light detector reads three"):
        small("swin")
