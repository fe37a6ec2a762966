"""The contract of every task: an encoder with a head that can be trained, asked and scored."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from limbeck.models.encoder import Encoder
from limbeck.records import Batch, Features, Losses, Tap


class Task(nn.Module, ABC):
    """A supervised task. ``encoder`` carries the head, so a finished task model is an Encoder.

    ``taps`` are what ``loss`` reads. Who runs the encoder anyway (a distiller, for a teacher's
    loss) asks it for these as well.
    """

    encoder: Encoder
    taps: tuple[Tap, ...]

    def forward(self, batch: Batch) -> Losses:
        """The supervised losses of one batch."""
        return self.loss(self.encoder(batch.images, batch.ids_keep, self.taps), batch)

    @abstractmethod
    def loss(self, features: Features, batch: Batch) -> Losses:
        """The supervised losses of a batch from the taps of its features."""

    @abstractmethod
    def predict(self, images: Tensor) -> Any:
        """Predictions for images (B, 3, H, W) in 0..1: a tensor (B, ...), or a record an image."""

    @abstractmethod
    def score(self, predictions: Any, labels: Any) -> dict[str, float]:
        """Scores of predictions, by name."""
