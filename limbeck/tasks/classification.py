"""Image classification: an encoder with a classifier, cross entropy, top-1 and top-5."""

from torch import Tensor

from limbeck.models.encoder import Encoder, check_taps
from limbeck.ops.losses import soft_cross_entropy
from limbeck.records import Batch, Features, Losses, Tap
from limbeck.tasks.task import Task

LOGITS = Tap("logits")


class Classification(Task):
    """Cross entropy of class logits against labels (class indices or soft targets).

    ``learner`` is the head that learns from the labels: all of them by their mean if not given, or
    Tap("class_logits") alone where the distillation head has a teacher. Predictions are always the
    mean.
    """

    def __init__(self, encoder: Encoder, learner: Tap = LOGITS) -> None:
        super().__init__()
        check_taps(encoder, (LOGITS, learner), "student")
        self.encoder = encoder
        self.taps = (learner,)

    def loss(self, features: Features, batch: Batch) -> Losses:
        """The loss of one labelled batch; its part is "class"."""
        assert batch.labels is not None
        loss = soft_cross_entropy(features.taps[self.taps[0]], batch.labels)
        return Losses(total=loss, parts={"class": loss.detach()})

    def predict(self, images: Tensor) -> Tensor:
        """Class logits (B, C) of images (B, 3, H, W) in 0..1."""
        return self.encoder(images, None, (LOGITS,)).taps[LOGITS]

    def score(self, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """top1 and top5 (0..1) of logits (n, C) against class indices (n,)."""
        k = min(5, predictions.shape[1])
        is_right = predictions.topk(k, dim=1).indices == labels[:, None]
        hits = is_right.float().cumsum(dim=1).mean(dim=0)
        return {"top1": float(hits[0]), "top5": float(hits[-1])}
