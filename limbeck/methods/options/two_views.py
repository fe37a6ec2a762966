"""Options of the methods with a momentum encoder, which compare two views of an image."""

import dataclasses
from typing import Annotated, ClassVar

import pydantic

from limbeck.config import Few, NotNegative, PositiveFloat, Probability, Rate, Side, Width, options
from limbeck.data.options import CropOptions, ViewOptions
from limbeck.errors import UserError
from limbeck.methods.options.base import MethodOptions


@options
class TwoViewOptions(MethodOptions):
    """Two views of each image, and a momentum encoder in the place of a teacher.

    The defaults are the disturbances of MoCo-v3 (arXiv 2104.02057) and DINO (arXiv 2104.14294).
    """

    needs_teacher: ClassVar[bool] = False

    color_jitter: tuple[NotNegative, NotNegative, NotNegative] = (0.4, 0.4, 0.2)
    """Brightness, contrast, saturation: factors in 1 +- value."""
    hue_jitter: Annotated[float, pydantic.Field(ge=0, le=0.5)] = 0.1
    jitter_prob: Probability = 0.8
    gray_prob: Probability = 0.2
    blur_prob: tuple[Probability, Probability] = (1.0, 0.1)
    """Gaussian blur of the first and of the second view."""
    solarize_prob: tuple[Probability, Probability] = (0.0, 0.2)
    """Inverted bright values, of the first and of the second view."""
    momentum: Rate = 0.99
    """Of the momentum encoder at the start; it rises to 1 along half a cosine."""

    def views(self, crop: CropOptions) -> tuple[ViewOptions, ...]:
        """Two, which are blurred and solarised with probabilities of their own."""
        both = zip(self.blur_prob, self.solarize_prob, strict=True)
        return tuple(self._view(crop, blur, solarize) for blur, solarize in both)

    def _view(self, crop: CropOptions, blur_prob: float, solarize_prob: float) -> ViewOptions:
        has_jitter = any(self.color_jitter) or self.hue_jitter > 0
        return ViewOptions(
            **dataclasses.asdict(crop),
            color_jitter=self.color_jitter,
            hue_jitter=self.hue_jitter,
            jitter_prob=self.jitter_prob if has_jitter else 1.0,
            gray_prob=self.gray_prob,
            blur_prob=blur_prob,
            solarize_prob=solarize_prob,
        )


@options
class MocoV3Options(TwoViewOptions):
    """MoCo-v3: which view of the others in the batch is of the same image? Defaults: the paper's
    for ViT, with the momentum that MAE-Lite's study took."""

    temperature: PositiveFloat = 0.2
    hidden_dim: Width = 4096
    """Width of the projector's and the predictor's hidden layers."""
    out_dim: Width = 256
    """Width in which views are compared."""


@options
class DinoOptions(TwoViewOptions):
    """DINO: a view says what the momentum encoder says of another one. Defaults: the paper's, with
    fewer outputs and two views only, for small data."""

    momentum: Rate = 0.996
    temperature: PositiveFloat = 0.1
    """Of the student's softmax."""
    teacher_temperature: PositiveFloat = 0.04
    """Of the momentum encoder's."""
    center_momentum: Rate = 0.9
    """Of the mean output that is taken from the momentum encoder's."""
    hidden_dim: Width = 2048
    """Width of the head's hidden layers."""
    bottleneck_dim: Width = 256
    out_dim: Width = 4096
    """Outputs; the paper has 65536."""
    last_layer_frozen: Rate = 0.01
    """Part of the run at whose start the last layer stays as it is (the paper: one epoch)."""
    num_local_crops: Few = 0
    """Small crops that only the student sees; the paper has 6 to 10 of them."""
    local_img_size: Side = 96
    """Their side in pixels."""
    local_scale: tuple[Probability, Probability] = (0.05, 0.4)
    """Their area as a part of the image; the paper then crops the others from 0.4 (crop.scale)."""

    def __post_init__(self) -> None:
        if not self.num_local_crops and (self.local_img_size, self.local_scale) != (
            DinoOptions.local_img_size,
            DinoOptions.local_scale,
        ):
            raise UserError(
                "dino.local_img_size and dino.local_scale have no effect without "
                "dino.num_local_crops; set it, or leave them out."
            )

    def local_views(self, crop: CropOptions) -> tuple[tuple[ViewOptions, int], ...]:
        """Blurred with probability 0.5, as in the paper."""
        local = dataclasses.replace(crop, scale=self.local_scale)
        return ((self._view(local, 0.5, 0.0), self.local_img_size),) * self.num_local_crops
