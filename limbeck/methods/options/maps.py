"""Options of the methods that compare maps of classes."""

from limbeck.config import PositiveFloat, options


@options
class ChannelWiseOptions:
    """A segmentation teacher's maps, each class by where it is. Defaults: G2SD's."""

    weight: PositiveFloat = 3.0
    """Of the loss beside the labels', which has 1."""
    temperature: PositiveFloat = 1.0
    """Divides the logits of both sides; the loss is multiplied by its square."""


@options
class PixelKlOptions:
    """A segmentation teacher's maps, each place by what it is."""

    weight: PositiveFloat = 1.0
    """Of the loss beside the labels', which has 1."""
    temperature: PositiveFloat = 1.0
    """Divides the logits of both sides; the loss is multiplied by its square."""
