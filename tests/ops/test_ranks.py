"""What one process alone agrees on; of several: tests/engine/test_distributed.py."""

import torch

from limbeck.ops.ranks import mean_over_ranks


def test_alone_it_is_the_value_itself():
    values = torch.arange(3.0)
    assert mean_over_ranks(values) is values and values.tolist() == [0, 1, 2]
