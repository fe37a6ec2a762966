"""DINO: self-distillation without labels, from a momentum encoder that sees another view.

Emerging Properties in Self-Supervised Vision Transformers, arXiv 2104.14294. What we do
differently: the length of time for which the last layer stays frozen is a part of the run, so that
it suits short runs, too. Left out: the schedules of weight decay and of the teacher's temperature.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UserError
from limbeck.methods.momentum import Momentum
from limbeck.methods.options import DinoOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.ranks import mean_over_ranks
from limbeck.ops.views import centred_cross_entropy
from limbeck.records import Batch, Features, Losses


class Dino(Momentum):
    """L = mean over pairs of different views of H(teacher view, student view).

    H is ``centred_cross_entropy``. The teacher sees the two whole views, the student these and the
    local ones. The center is a moving average of the teacher's mean output over the batches of a
    step and over all processes.
    """

    Options = DinoOptions
    center: Tensor
    seen: Tensor
    is_frozen: Tensor

    def __init__(
        self, options: DinoOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        hidden, width = options.hidden_dim, options.bottleneck_dim
        head = Head(student.output_dim, hidden, width, options.out_dim)
        super().__init__(options, student, teacher, head)
        if options.num_local_crops:
            _check_local(options.local_img_size, student)
        self.options = options
        self.register_buffer("center", torch.zeros(options.out_dim))
        # The sum of the mean outputs since the last step, and their number.
        self.register_buffer("seen", torch.zeros(options.out_dim + 1), persistent=False)
        self.register_buffer("is_frozen", torch.tensor(options.last_layer_frozen > 0))

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The loss; its part is "view"."""
        assert teacher is not None
        targets = [self.teacher_head(x) for x in self.split_views(teacher, 2)]
        inputs = [*self.split_views(student, 2)]
        if student.local is not None:
            inputs += self.split_views(student.local, self.options.num_local_crops)
        temperatures = self.options.temperature, self.options.teacher_temperature
        losses = [
            centred_cross_entropy(own, target, self.center, *temperatures)
            for number, own in enumerate(self.head(x, self.is_frozen) for x in inputs)
            for other, target in enumerate(targets)
            if number != other
        ]
        mean = mean_over_ranks(torch.stack(targets).mean(dim=(0, 1)))
        self.seen += torch.cat([mean, mean.new_ones(1)])
        loss = torch.stack(losses).mean()
        return Losses(total=loss, parts={"view": loss.detach()})

    def after_step(self, step: int, total_steps: int) -> None:
        """Let the momentum head follow, and move the center."""
        super().after_step(step, total_steps)
        mean = self.seen[:-1] / self.seen[-1]
        self.center.lerp_(mean, 1 - self.options.center_momentum)
        self.seen.zero_()
        self.is_frozen.fill_(step < self.options.last_layer_frozen * total_steps)


class Head(nn.Module):
    """Three layers with GELU to a bottleneck of length one, and its cosines with ``out_dim`` rows.

    The last layer's weights are normalised, without a scale.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, bottleneck_dim: int, out_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        self.last_layer = nn.Parameter(torch.empty(out_dim, bottleneck_dim))
        nn.init.trunc_normal_(self.last_layer, std=0.02)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, is_frozen: Tensor | None = None) -> Tensor:
        """Outputs (B, out_dim) in -1..1; no gradient reaches a last layer that is frozen."""
        x = self.mlp(x)
        rows: Tensor = self.last_layer
        if is_frozen is not None:
            rows = torch.where(is_frozen, rows.detach(), rows)
        # In float32: divided by a temperature of 0.04, the steps of bf16 would be coarse.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            return F.normalize(x, dim=1) @ F.normalize(rows, dim=1).T


def _check_local(img_size: int, student: EncoderFacts) -> None:
    if img_size % student.patch_size or img_size >= min(student.img_size):
        raise UserError(
            f"dino.local_img_size {img_size} must be a multiple of the patch size, "
            f"{student.patch_size}, and less than the student's image size, {student.img_size[0]}."
        )
