"""A copy of a network that follows it: the momentum encoder (arXiv 1911.05722)."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class Follower(nn.Module):
    """``network``, a copy of another one: without gradients and always in evaluation mode.

    It is part of its owner's state, so that a continued run finds it again.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = deepcopy(network).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Follower":
        """Stay in evaluation mode."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """What the copy says."""
        return self.network(*args)

    @torch.no_grad()
    def follow(self, network: nn.Module, momentum: float) -> None:
        """own = momentum * own + (1 - momentum) * ``network``'s; buffers are taken as they are."""
        own: list[Tensor] = [*self.network.parameters()]
        theirs: list[Tensor] = [*network.parameters()]
        torch._foreach_lerp_(own, theirs, 1 - momentum)
        for buffer, new in zip(self.network.buffers(), network.buffers(), strict=True):
            buffer.copy_(new)
