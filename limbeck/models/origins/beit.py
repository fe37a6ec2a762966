"""Relative positions of BEiT (arXiv 2106.08254): the table of indices, and tables of another size.

The index of a pair of patches is (dy + gh - 1) * (2 gw - 1) + dx + gw - 1 with dy, dx those of
query minus key; the last three entries are CLS to patch, patch to CLS, CLS to CLS.
"""

import warnings
from math import isqrt

import torch
from timm.layers import resize_rel_pos_bias_table
from timm.models.beit import gen_relative_position_index

from limbeck.errors import UserError
from limbeck.models.origins.layouts import Grid, Weights

TABLE = "relative_position_bias_table"
INDEX = "relative_position_index"


def check_indices(weights: Weights, where: str) -> None:
    """Raise UserError where a file's table of indices is not the one that is computed."""
    for name, index in weights.items():
        if name.rpartition(".")[2] != INDEX:
            continue
        side = isqrt(max(index.shape[0] - 1, 0))
        expected = gen_relative_position_index((side, side))
        if expected.shape != index.shape or not torch.equal(expected, index.to(expected.dtype)):
            raise UserError(
                f"{where}: {name} is not BEiT's order of relative positions for a square grid, so "
                "the biases would be of other pairs; this file can't be loaded."
            )


def resize_tables(weights: Weights, own: Weights, old: Grid, new: Grid) -> Weights:
    """``weights`` with their tables of relative positions resized to those of ``own`` as timm does.

    ``old`` and ``new`` are the patch grids (gh, gw). Where the old one is no square timm can't
    tell, and the tables stay as they are.
    """
    if old[0] != old[1]:
        return weights
    with warnings.catch_warnings(action="ignore"):  # of timm's way through memory
        return weights | {
            name: resize_rel_pos_bias_table(value, new, own[name].shape)
            for name, value in weights.items()
            if name.endswith(TABLE) and name in own and own[name].shape != value.shape
        }
