"""MoCo-v3: contrast of two views of an image, with a momentum encoder.

An Empirical Study of Training Self-Supervised Vision Transformers, arXiv 2104.02057; for small ViTs
as in A Closer Look at Self-Supervised Lightweight Vision Transformers, arXiv 2205.14443, where the
patch embedding is trained. What we do differently: nothing of a batch norm is kept for later (its
statistics are always those of the batch, over all processes), since the heads vanish.
"""

import torch
from torch import Tensor, nn

from limbeck.engine.distributed import SumOverRanks, gather_rows, num_ranks
from limbeck.methods.momentum import Momentum
from limbeck.methods.options import MocoV3Options
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.views import contrastive_loss
from limbeck.records import Batch, Features, Losses


class MocoV3(Momentum):
    """L = ctr(q1, k2) + ctr(q2, k1): q = predictor(projector(student)), k of the momentum encoder.

    ctr is ``contrastive_loss``; the keys are those of the whole batch, over all processes.
    """

    Options = MocoV3Options
    compares_samples = True

    def __init__(
        self, options: MocoV3Options, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        hidden, out = options.hidden_dim, options.out_dim
        super().__init__(options, student, teacher, mlp(student.output_dim, hidden, hidden, out))
        self.predictor = mlp(out, hidden, out)
        self.temperature = options.temperature

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The symmetrised loss; its part is "contrast"."""
        assert teacher is not None
        # View by view: the batch norms must not mix them.
        queries = [self.predictor(self.head(x)) for x in self.split_views(student, 2)]
        keys = [gather_rows(self.teacher_head(x)) for x in self.split_views(teacher, 2)]
        loss = contrastive_loss(queries[0], *keys[1], self.temperature)
        loss = loss + contrastive_loss(queries[1], *keys[0], self.temperature)
        return Losses(total=loss, parts={"contrast": loss.detach()})


def mlp(*dims: int) -> nn.Sequential:
    """Linear layers without bias, each with a batch norm, and ReLU between them.

    The last norm has no affine weights.
    """
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(zip(dims, dims[1:], strict=False), 2):
        is_last = place == len(dims)
        layers += [nn.Linear(before, after, bias=False), BatchNorm(after, not is_last)]
        layers += [] if is_last else [nn.ReLU()]
    return nn.Sequential(*layers)


class BatchNorm(nn.Module):
    """x normalised per channel over the batch of all processes, in float32 or wider; eps 1e-5.

    Not torch's SyncBatchNorm, which exists on GPUs only.
    """

    def __init__(self, dim: int, has_affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim)) if has_affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if has_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) of this process."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        count = len(x) * num_ranks()
        mean = SumOverRanks.apply(x.sum(dim=0)) / count
        x = x - mean
        var = SumOverRanks.apply(x.square().sum(dim=0)) / count
        x = x * (var + 1e-5).rsqrt()
        if self.weight is None or self.bias is None:
            return x
        return x * self.weight + self.bias
