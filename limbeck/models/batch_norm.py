"""Batch norm with fixed statistics, as TinyViT is fine-tuned (arXiv 2207.10666)."""

from torch import nn

from limbeck.errors import UserError
from limbeck.models.timm_encoder import TimmEncoder


class FixedBatchNorm(nn.BatchNorm2d):
    """Batch norm that always normalises by its running statistics, which stay as they are.

    Its weight and bias are trained; the names of its state are those of ``nn.BatchNorm2d``.
    """

    def train(self, mode: bool = True) -> "FixedBatchNorm":
        """Stay in evaluation mode."""
        del mode
        return super().train(False)


def fix_batch_norm(encoder: TimmEncoder) -> None:
    """Fix the statistics of every batch norm, in place. Raises UserError where there is none."""
    found = [
        (name, module)
        for name, module in encoder.model.named_modules()
        if type(module) is nn.BatchNorm2d
    ]
    if not found:
        raise UserError(
            f"{encoder.facts.architecture['name']} has no batch norm whose statistics could be "
            "fixed; leave --freeze-batch-norm out."
        )
    for name, norm in found:
        fixed = FixedBatchNorm(norm.num_features, eps=norm.eps, device=norm.weight.device)
        fixed.load_state_dict(norm.state_dict())
        encoder.model.set_submodule(name, fixed)
