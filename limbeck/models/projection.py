"""The two-layer projection of features: Generic-to-Specific Distillation, arXiv 2302.14771."""

from timm.layers import Mlp
from torch import nn


def build_projection(in_dim: int, out_dim: int) -> nn.Module:
    """Linear, GELU, Linear (``fc1``, ``fc2``) from (..., in_dim) to (..., out_dim).

    The hidden width is ``out_dim``; started as MAE's decoder: xavier-uniform, zero biases.
    """
    projection = Mlp(in_dim, out_dim, out_dim)
    for layer in (projection.fc1, projection.fc2):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return projection
