"""int8 tried out in PyTorch: how much each layer's rounding hurts, and a repair of the weights.

Weights are rounded by output channel, symmetrically; what a layer takes, between the least and the
largest value that was seen. What runtimes do is near, so this ranks layers and never proves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval

from limbeck.exports.formats import BY_SCORE
from limbeck.exports.graph import Graph
from limbeck.models.dense.units import Unit

LAYERS = (nn.Linear, nn.Conv2d)
Batches = Sequence[Tensor]
"""Images as the graph takes them."""


def folded(graph: Graph) -> Graph:
    """A copy whose BatchNorms are part of the convolutions before them, as runtimes have it."""
    copied = deepcopy(graph)
    for module in [each for each in copied.modules() if isinstance(each, (nn.Sequential, Unit))]:
        before: tuple[str, nn.Module] | None = None
        for name, child in list(module.named_children()):
            if before and isinstance(child, _BatchNorm) and isinstance(before[1], nn.Conv2d):
                setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(module, name, nn.Identity())
            before = name, child
    return copied.requires_grad_(False)


def rounded(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values in 256 steps from ``low`` to ``high``; the gradient passes where they are inside."""
    step = ((high - low) / 255).clamp(min=1e-12)
    inside = torch.minimum(torch.maximum(values, low), high)
    return inside + (((inside - low) / step).round() * step + low - inside).detach()


class Rounding:
    """Takes the place of a layer's forward: looks on, and rounds while ``is_on``."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self.layer, self.is_on = layer, False
        self.low = self.high = torch.zeros(())

    def __call__(self, values: Tensor) -> Tensor:
        """What the layer says of them."""
        weight = self.layer.weight
        if self.is_on:
            values = rounded(values, self.low, self.high)
            most = weight.detach().abs().flatten(1).amax(1).view(-1, *[1] * (weight.ndim - 1))
            weight = rounded(weight, -most * 128 / 127, most)
        else:
            least, largest = values.detach().aminmax()
            self.low, self.high = torch.minimum(self.low, least), torch.maximum(self.high, largest)
        if isinstance(self.layer, nn.Linear):
            return F.linear(values, weight, self.layer.bias)
        return self.layer._conv_forward(values, weight, self.layer.bias)


@contextmanager
def roundings(graph: Graph, batches: Batches) -> Iterator[dict[str, Rounding]]:
    """By name all layers that are called, which saw the images; off, and all undone."""
    found = {
        name: Rounding(layer) for name, layer in graph.named_modules() if isinstance(layer, LAYERS)
    }
    try:
        for each in found.values():
            each.layer.forward = each  # type: ignore[method-assign]
        with torch.no_grad():
            for images in batches:
                graph(images)
        yield {name: each for name, each in found.items() if each.high > each.low}
    finally:
        for each in found.values():
            del each.layer.forward


def sensitivities(graph: Graph, batches: Batches) -> dict[str, float]:
    """By layer how far the outputs move, as a part of their norm, if it alone is int8.

    The mean over images, of the output that moves most; the layer that hurts most comes first.
    """
    with roundings(graph, batches) as layers, torch.no_grad():
        own = [graph(images) for images in batches]
        moved = {}
        for name, layer in layers.items():
            layer.is_on = True
            said = [graph(images) for images in batches]
            moved[name] = max(
                float(torch.cat([_apart(a[key], b[key]) for a, b in zip(said, own, strict=True)])
                      .mean())
                for key in own[0] if key not in BY_SCORE and own[0][key].is_floating_point()
            )  # fmt: skip
            layer.is_on = False
    return dict(sorted(moved.items(), key=lambda each: -each[1]))


def _apart(own: Tensor, other: Tensor) -> Tensor:
    own, other = own.flatten(1), other.flatten(1)
    return (own - other).norm(dim=1) / other.norm(dim=1).clamp(min=1e-12)


def repaired(graph: Graph, batches: Batches, steps: int, lr: float) -> Graph:
    """A copy that was trained, rounded, to answer as ``graph`` does unrounded.

    Of classes the divergence of the probabilities counts, of tokens the squared difference as a
    part of their variance. Weights go by the straight-through estimator; ranges stay as seen.
    """
    learner = deepcopy(graph)
    with torch.no_grad():
        wanted = [graph(images) for images in batches]
    layers = [each for each in learner.modules() if isinstance(each, LAYERS)]
    parameters = [each.requires_grad_() for layer in layers for each in layer.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr, weight_decay=0)
    with roundings(learner, batches) as seen:
        for each in seen.values():
            each.is_on = True
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = lr * (1 - step / steps)
            place = step % len(batches)
            optimiser.zero_grad()
            _loss(learner(batches[place]), wanted[place]).backward()
            optimiser.step()
    return learner.requires_grad_(False)


def _loss(own: dict[str, Tensor], other: dict[str, Tensor]) -> Tensor:
    parts: list[Any] = []
    for name, wanted in other.items():
        if name.endswith("logits"):
            said = F.log_softmax(own[name], 1)
            parts.append(F.kl_div(said, wanted.softmax(1), reduction="none").sum(1).mean())
        elif name not in BY_SCORE and wanted.is_floating_point():
            parts.append(F.mse_loss(own[name], wanted) / wanted.var().clamp(min=1e-12))
    return torch.stack(parts).sum()
