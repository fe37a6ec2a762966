"""Heads on a backbone, as segmenters and detectors share it; more is in their own tests."""

import pytest

from limbeck.records import Tap
from tests.models.dense.test_light_detector import images
from tests.models.dense.test_light_detector import small as detector
from tests.models.dense.test_segmenter import small as segmenter


@pytest.mark.parametrize("make", [segmenter, detector])
def test_layers_and_heads_are_the_backbone_s(make):
    network = make()
    facts = network.facts
    assert network.layer_id("backbone.model.blocks.1.mlp.fc1.weight") == 2
    head = next(name for name, _ in network.named_parameters() if not name.startswith("backbone"))
    assert network.layer_id(head) == facts.depth + 1
    with pytest.raises(ValueError, match="'nothing.weight' is no parameter of"):
        network.layer_id("nothing.weight")
    network.set_num_heads(1, 4)
    assert network.facts.num_heads[1] == network.backbone.facts.num_heads[1] == 4
    assert network.facts.architecture["kwargs"]["backbone"]["num_heads"][1] == 4


def test_only_the_blocks_that_are_asked_for_run():
    network = detector().eval()
    found = network(images(1), None, (Tap("tokens", 0),)).taps
    assert set(found) == {Tap("tokens", 0)}
