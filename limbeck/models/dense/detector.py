"""The contract of every detector: an encoder with heads that find boxes, and masks if it has them.

It is trained, taught, saved and loaded as any other encoder.
"""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from limbeck.models.dense.headed import Headed
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.records import Detections, Features, Losses, Objects, Tap

KIND = "detector"


class Detector(Headed):
    """A backbone, a pyramid and heads; ``facts.level_strides`` and ``level_dims`` say its levels.

    ``loss_taps`` are what its losses read, and always hold Tap("pyramid", level) of each level.
    Images are squares of ``facts.img_size``: what an image leaves free of it lies right and below.
    """

    loss_taps: tuple[Tap, ...]
    has_masks: bool
    class_weights: Tensor | None
    """(C,) float32, of what the loss of the classes says of each; None: all alike."""

    def __init__(self, backbone: TimmEncoder) -> None:
        super().__init__(backbone)
        # Not persistent: they are an option, not learnt.
        self.register_buffer("class_weights", None, persistent=False)

    @abstractmethod
    def losses(self, features: Features, objects: Sequence[Objects], seeds: Tensor) -> Losses:
        """The supervised losses of images with these objects, from ``loss_taps``.

        What is drawn in it follows from ``seeds`` (B,) int64, an image each. Each is a mean over
        what all processes have together, or one that does not hang on how many objects there are.
        """

    @abstractmethod
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """What it finds in images (B, 3, S, S) in 0..1, of which (H, W) in ``sizes`` is no filling.

        Boxes lie within that. In evaluation mode, without gradients.
        """
