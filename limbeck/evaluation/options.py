"""Options of how maps are predicted (no torch here, see ``limbeck.config``)."""

from typing import Annotated, Literal

import pydantic

from limbeck.config import PositiveFloat, PositiveInt, options
from limbeck.errors import UserError


@options
class MapOptions:
    """How a segmenter is shown an image. Defaults: as published."""

    mode: Literal["slide", "whole"] = "slide"
    """slide: in windows of the segmenter's own size; whole: the image at once, for which positions
    are interpolated."""
    resize: Literal["fit", "none"] = "fit"
    """fit: the image's shorter side is first made that of a window, the longer at most four times
    it; none: the image is seen as large as it is."""
    stride: PositiveInt | None = None
    """Pixels from one window to the next; two thirds of a window if not given (341 of 512)."""
    flip: bool = False
    """Also show each window mirrored, and take the mean."""
    scales: Annotated[tuple[PositiveFloat, ...], pydantic.Field(min_length=1)] = (1.0,)
    """Show the image this many times as large, and take the mean of the probabilities."""
    window_batch: PositiveInt = 4
    """Windows at a time."""

    def __post_init__(self) -> None:
        if self.mode == "whole" and (self.stride, self.window_batch) != (None, 4):
            raise UserError(
                "stride and window_batch have no effect with mode whole; leave them out."
            )
