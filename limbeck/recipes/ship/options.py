"""Options of what leaves (no torch here, see ``limbeck.config``)."""

from typing import Annotated, Literal

import pydantic

from limbeck.config import (
    BatchSize,
    NotNegative,
    NotNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Repeats,
    options,
)


@options
class ShownMapOptions:
    """How a segmenter is shown an image: as its run was scored, but for what is given here."""

    mode: Literal["slide", "whole"] | None = None
    """slide: in windows of the segmenter's own size; whole: the image at once."""
    resize: Literal["fit", "none"] | None = None
    """fit: the image's shorter side is first made that of a window; none: it stays as it is."""
    stride: PositiveInt | None = None
    """Pixels from one window to the next."""
    flip: bool | None = None
    """Also show each window mirrored, and take the mean."""
    scales: Annotated[tuple[PositiveFloat, ...], pydantic.Field(min_length=1)] | None = None
    """Show the image this many times as large, and take the mean of the probabilities."""
    window_batch: PositiveInt | None = None
    """Windows at a time."""


@options
class ToleranceOptions:
    """What is still the same network; beyond it nothing is written."""

    difference: Annotated[float, pydantic.Field(gt=0, le=10)] | None = None
    """The largest difference of an output of an image, as a part of the output's norm; 0.001 of
    fp32, 0.02 of fp16, 0.1 of bf16 and 0.3 of int8 if not given."""
    agreement: Probability | None = None
    """The least share of images (of a segmenter, of pixels) whose class is the same; 0.999 of fp32
    and 0.98 of others if not given."""
    loss: NotNegative = 0.5
    """Points that the score may lose where images have labels; one image may always change."""


@options
class Int8Options:
    """How a network is made int8: on images that are none of the proof's."""

    num_images: PositiveInt = 128
    """Images of the run's training, or of --data: three quarters of them give the ranges of
    activations, and a quarter tells which layers must stay in floats."""
    repair: NotNegativeInt = 0
    """Steps of training in which the weights learn to be rounded, to the answers of the network as
    it is; 0: none. For where int8 loses too much."""
    repair_lr: PositiveFloat = 1e-4
    """The repair's learning rate at its start."""


@options
class MeasureOptions:
    """How seconds and memory are measured, of the file and of PyTorch."""

    batch_size: BatchSize = 16
    """Beside single images: so many at a time."""
    num_runs: Repeats = 30
    """Passes in each case, or fewer where they take more than three seconds."""
