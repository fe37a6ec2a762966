"""torch.export's file computes what the network does, of any number and size of images."""

import numpy as np
import torch

from limbeck.exports.torch import runner
from tests.exports.kinds import compared
from tests.models.families import small_encoder


def test_it_computes_the_same_at_any_size(tmp_path):
    found, said = compared(small_encoder("mae"), "torch", "fp32", tmp_path, any_size=True)
    assert len(found.keys) == 6 and said == {}


def test_half_the_bits_of_the_blocks(tmp_path):
    compared(small_encoder("augreg"), "torch", "bf16", tmp_path)


def test_threads_are_as_before_after_a_pass():
    seen, before = [], torch.get_num_threads()

    def network(images):
        seen.append(torch.get_num_threads())
        return {"twice": 2 * images}

    found = runner(network, 3)(np.ones(2, np.float32))
    assert seen == [3] and torch.get_num_threads() == before
    assert found["twice"].tolist() == [2, 2]
