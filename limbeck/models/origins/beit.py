"""The indices of relative positions in files of BEiT (arXiv 2106.08254).

The index of a pair of patches is (dy + gh - 1) * (2 gw - 1) + dx + gw - 1 with dy, dx those of
query minus key; the last three entries are CLS to patch, patch to CLS, CLS to CLS.
"""

from math import isqrt

import torch
from timm.models.beit import gen_relative_position_index

from limbeck.errors import UserError
from limbeck.models.origins.layouts import Weights

INDEX = "relative_position_index"


def check_indices(weights: Weights, where: str) -> None:
    """Raise UserError where a file's table of indices is not the one that is computed."""
    for name, index in weights.items():
        if name.rpartition(".")[2] != INDEX:
            continue
        side = isqrt(max(index.shape[0] - 1, 0)) if index.ndim else 0
        is_sized = tuple(index.shape) == (side * side + 1,) * 2  # before as many are computed
        expected = gen_relative_position_index((side, side)) if is_sized and side else None
        if expected is None or not torch.equal(expected, index.to(expected.dtype)):
            raise UserError(
                f"{where}: {name} is not BEiT's order of relative positions for a square grid, so "
                "the biases would be of other pairs; this file can't be loaded."
            )
