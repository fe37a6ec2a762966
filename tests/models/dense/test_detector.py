"""The table of heads: each names a module that keeps the contract."""

import pytest

from limbeck.models.dense.detector import HEADS, Detector, head_module
from tests.models.dense.test_light_detector import small


@pytest.mark.parametrize("head", HEADS)
def test_every_head_has_what_builds_it(head):
    module = head_module(head)
    assert all(callable(getattr(module, name)) for name in ("parts_of", "build", "rebuild"))


def test_levels_are_told_and_losses_read_all_of_them():
    detector = small()
    assert isinstance(detector, Detector)
    count = len(detector.facts.level_strides)
    assert len(detector.facts.level_dims) == count
    levels = {tap.block for tap in detector.loss_taps if tap.kind == "pyramid"}
    assert levels == set(range(count))
