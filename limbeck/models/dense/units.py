"""What all heads of maps are made of: a convolution, a norm, ReLU."""

from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from limbeck.errors import UserError
from limbeck.models.options import DenseNorm

MAX_GROUPS = 32


class SyncedBatchNorm(nn.SyncBatchNorm):
    """torch's batch norm over the images of all processes, on the CPU too.

    The names of its state are those of ``nn.BatchNorm2d``, which it is where one process trains.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised maps (B, C, H, W). Raises UserError for one value per channel in training."""
        is_alone = not distributed.is_initialized() or distributed.get_world_size() == 1
        if self.training and is_alone and x.numel() == x.shape[1]:
            raise UserError(
                "Batch norm can't learn from micro-batches of one image; raise "
                "train.global_batch_size, or set segmenter.norm (detector.norm) group."
            )
        if x.is_cuda or is_alone or not self.training:
            return super().forward(x)
        wide, width = x.float(), x.shape[1]
        count = torch.full((1,), wide.numel() / width)
        sums = torch.cat((wide.sum((0, 2, 3)), count))
        total, count = _SumOverRanks.apply(sums).split((width, 1))
        mean = total / count
        # Of squares less the mean's square nothing would be left where the mean is large.
        centred = wide - mean[:, None, None]
        variance = _SumOverRanks.apply(centred.square().sum((0, 2, 3))) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        factor = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * factor
        return (wide * factor[:, None, None] + shift[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics as ``nn.BatchNorm2d`` does."""
        assert self.num_batches_tracked is not None and self.momentum is not None
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class _SumOverRanks(torch.autograd.Function):
    """The sum over all processes; every one's losses depend on this one's values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        del ctx
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total


def make_norm(kind: DenseNorm, channels: int) -> nn.Module:
    """Batch norm (of all processes together) or group norm of up to 32 groups."""
    if kind == "batch":
        return SyncedBatchNorm(channels)
    return nn.GroupNorm(gcd(MAX_GROUPS, channels), channels)


class Unit(nn.Module):
    """Convolution without bias, norm, ReLU; starts kaiming-normal of its fan-out."""

    def __init__(
        self, dim: int, out_dim: int, kernel: int, norm: DenseNorm, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.norm = make_norm(norm, out_dim)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, D, H, W) to (B, out, H, W)."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class Classify(nn.Module):
    """The end of every head: dropout of whole channels, and a 1x1 convolution to the classes.

    It is computed outside autocast, as every classifier is: in bfloat16 the likeliest may tie.
    """

    def __init__(self, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.conv = nn.Conv2d(dim, num_classes, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C, H, W) of maps (B, D, H, W)."""
        with torch.autocast(x.device.type, enabled=False):
            return self.conv(self.dropout(x).to(self.conv.weight.dtype))


def resize(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Maps (B, D, H, W) at another size, bilinear; as they are if they have it."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
