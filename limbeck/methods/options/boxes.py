"""Options of the methods by which a detector teaches one."""

from typing import ClassVar

from limbeck.config import NotNegative, NotNegativeInt, PositiveFloat, options


@options
class FeatureRichnessOptions:
    """A detector's pyramid, where it sees objects. Defaults: G2SD's."""

    heads: ClassVar = ("light", "rcnn")
    feature_weight: PositiveFloat = 0.001
    """Of how far the maps are apart: of published widths (256 channels) and sizes. The light head's
    need more: 0.02."""
    objectness_weight: NotNegative = 0.1
    warmup_steps: NotNegativeInt = 500
    """Steps over which both rise from 0."""


@options
class DenseAnswersOptions:
    """What a detector without anchors says of every place."""

    heads: ClassVar = ("light",)
    class_weight: PositiveFloat = 1.0
    box_weight: PositiveFloat = 2.0
    sharpness: NotNegative = 1.0
    """How much more those places count that student and teacher differ in: the difference of their
    probabilities to this power."""
