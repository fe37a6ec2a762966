"""Semantic segmentation: an encoder whose logits are maps, cross entropy over its pixels."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.encoder import Encoder, check_taps
from limbeck.ops.ranks import mean_over_ranks
from limbeck.records import IGNORE, Batch, Features, Losses, Tap
from limbeck.tasks.task import Task

LOGITS, AUX = Tap("logits"), Tap("aux_logits")
AUX_WEIGHT = 0.4
PixelMean = Literal["valid", "all"]


class Segmentation(Task):
    """Cross entropy of maps, resized to the labels' size, against label maps (B, H, W).

    ``mean`` over the "valid" pixels of a micro-batch (of all processes), or over "all" as
    published, where those with ``IGNORE`` count with a loss of 0. ``class_weights`` (one per class)
    weigh the pixels; the mean over the valid ones is then a weighted one. An auxiliary head's loss
    is added ``aux_weight`` times, if the encoder has one and it is not 0. Parts: "pixels" and,
    weighted, "aux".
    """

    class_weights: Tensor | None

    def __init__(
        self,
        encoder: Encoder,
        *,
        mean: PixelMean = "valid",
        class_weights: Sequence[float] | None = None,
        aux_weight: float = AUX_WEIGHT,
    ) -> None:
        super().__init__()
        check_taps(encoder, (LOGITS,), "student")
        count = encoder.facts.num_classes
        if class_weights is not None and len(class_weights) != count:
            raise UserError(
                f"There are {len(class_weights)} class weights for {count} classes; give one each."
            )
        self.encoder = encoder
        self.mean = mean
        has_aux = AUX.kind in encoder.offered_taps() and aux_weight > 0
        self.aux_weight = aux_weight if has_aux else 0.0
        self.taps = (LOGITS, AUX) if has_aux else (LOGITS,)
        # Not persistent: they are an option, not learnt.
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def loss(self, features: Features, batch: Batch) -> Losses:
        """The losses of one batch with label maps."""
        assert batch.labels is not None
        count = self._count(batch.labels)
        total = loss = self._cross_entropy(features.taps[LOGITS], batch.labels, count)
        parts = {"pixels": loss.detach()}
        if self.aux_weight:
            aux = self._cross_entropy(features.taps[AUX], batch.labels, count)
            aux = self.aux_weight * aux
            total, parts = total + aux, parts | {"aux": aux.detach()}
        return Losses(total, parts)

    def _count(self, labels: Tensor) -> Tensor | int:
        """The pixels (or their weight) that a process's losses are a mean over.

        Of valid ones as many as all processes have on the average: their losses' mean is then that
        over the valid pixels of all.
        """
        if self.mean == "all":
            return labels.numel()
        is_valid = labels != IGNORE
        if self.class_weights is None:
            return mean_over_ranks(is_valid.sum().float()).clamp(min=1)
        # Without a valid pixel there is no weight either, and the loss is 0.
        weight = self.class_weights[labels[is_valid]].sum()
        return mean_over_ranks(weight).clamp(min=torch.finfo(torch.float32).tiny)

    def _cross_entropy(self, logits: Tensor, labels: Tensor, count: Tensor | int) -> Tensor:
        wide = F.interpolate(
            logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False
        )
        weights = self.class_weights
        total = F.cross_entropy(wide, labels, weights, ignore_index=IGNORE, reduction="sum")
        return total / count

    def predict(self, images: Tensor) -> Tensor:
        """Class logits (B, C, h, w) of images (B, 3, H, W) in 0..1."""
        return self.encoder(images, None, (LOGITS,)).taps[LOGITS]

    def score(self, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """aacc, the share (0..1) of valid pixels that logits (n, C, h, w) name rightly."""
        size = labels.shape[-2:]
        wide = F.interpolate(predictions.float(), size, mode="bilinear", align_corners=False)
        is_valid = labels != IGNORE
        is_right = (wide.argmax(dim=1) == labels) & is_valid
        return {"aacc": float(is_right.sum() / is_valid.sum().clamp(min=1))}
