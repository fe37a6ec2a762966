"""The contract of every task: an encoder with a head that can be trained, asked and scored."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from limbeck.models.encoder import Encoder
from limbeck.records import Batch, Losses


class Task(nn.Module, ABC):
    """A supervised task. ``encoder`` carries the head, so a finished task model is an Encoder."""

    encoder: Encoder

    @abstractmethod
    def forward(self, batch: Batch) -> Losses:
        """The supervised losses of one batch."""

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """Predictions for images (B, 3, H, W) in 0..1."""

    @abstractmethod
    def score(self, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """Scores of predictions, by name."""
