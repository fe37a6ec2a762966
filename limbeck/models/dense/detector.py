"""The contract of every detector: an encoder with heads that find boxes, and masks if it has them.

It is trained, taught, saved and loaded as any other encoder.
"""

from abc import abstractmethod
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor

from limbeck.errors import NotFiniteError, UserError
from limbeck.models.dense.headed import Headed
from limbeck.models.options import DetectorHead
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.records import Detections, Features, Losses, Objects, Tap

KIND = "detector"
HEADS: dict[DetectorHead, str] = {
    "light": "limbeck.models.dense.light_detector",
    "rcnn": "limbeck.models.dense.rcnn.detector",
}
"""Modules of detectors by kind of head: ``encoder_of(backbone, img_size)`` copies an encoder as it
is read, ``parts_of(encoder, options)`` says what is put on it, ``build(encoder, parts, origin)``
does it, ``rebuild(architecture, origin)`` does it again.
"""


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
    def answers(self, images: Tensor) -> tuple[Tensor, ...]:
        """The likeliest answers, as many of every image: boxes (B, K, 4), scores (B, K), falling,
        and classes (B, K) of images (B, 3, S, S) in 0..1, and perhaps more. What an export
        computes."""

    @abstractmethod
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """What it finds in images (B, 3, S, S) in 0..1, of which (H, W) in ``sizes`` is no filling.

        Boxes lie within that. In evaluation mode, without gradients.
        """


def rebuild_detector(
    architecture: dict[str, Any], origin: dict[str, Any] | None = None
) -> Detector:
    """A detector from ``facts.architecture`` with fresh weights; see ``rebuild_segmenter``."""
    name = str(architecture.get("name"))[:64]
    kwargs = architecture["kwargs"]
    head = kwargs.get("head") if isinstance(kwargs, dict) else None
    if head not in HEADS:
        raise UserError(f"{name} states a head that is none; get the file again that says so.")
    return head_module(head).rebuild(architecture, origin)


def check_finite(values: Tensor) -> Tensor:
    """The values; raises NotFiniteError where any is none, which comparisons would let vanish."""
    if not values.isfinite().all():
        raise NotFiniteError("The detector's answers are not finite; use precision fp32.")
    return values


def head_module(head: DetectorHead) -> ModuleType:
    """The module of a kind of head, see ``HEADS``."""
    return import_module(HEADS[head])
