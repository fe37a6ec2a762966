"""Options of the method that learns from a masked autoencoder's decoder."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import pydantic

from limbeck.config import BlockIndex, Depth, NotNegative, PositiveFloat, Width, options
from limbeck.errors import UserError
from limbeck.methods.options.base import MethodOptions


@options
class DecoderFeatureOptions(MethodOptions):
    """G2SD's generic distillation: tokens of the teacher's decoder. Defaults: as released."""

    reads_decoder: ClassVar[bool] = True

    mask_ratio: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.75
    """Share of the patches that neither side sees."""
    target_block: BlockIndex = 3
    """Block of the teacher's decoder, from 0; negative from the end. The ones after do not run."""
    positions: Literal["all", "masked", "visible", "patches"] = "all"
    """Where the two are compared: the CLS token and all patches, or without the CLS token the
    masked patches, the visible ones, or both."""
    loss: Literal["smooth-l1", "mse", "cosine"] = "smooth-l1"
    beta: PositiveFloat = 2.0
    """Where smooth L1 turns from squared to absolute error."""
    encoder_weight: NotNegative = 0.0
    """Factor of the same loss of the encoders' last tokens, through a projection of its own; 0 is
    without."""
    decoder_embed_dim: Width | None = None
    """Width of the student's decoder; two thirds of its encoder's if not given."""
    decoder_depth: Depth = 4
    decoder_num_heads: Width | None = None
    """Its heads; one per 32 channels if not given (8 of width 192 and 4 of 64, as released)."""
    fresh_decoder: bool = False
    """Start decoder and projections anew where student.weights bring them; without, they are
    loaded."""

    def __post_init__(self) -> None:
        if self.loss != "smooth-l1" and self.beta != DecoderFeatureOptions.beta:
            raise UserError(
                f"decoder_feature.beta has no effect with the loss '{self.loss}'; leave it out."
            )

    def for_next_stage(self) -> "MethodOptions":
        """Its teacher is read where it has learnt: after the last block of its decoder."""
        return dataclasses.replace(self, target_block=-1)
