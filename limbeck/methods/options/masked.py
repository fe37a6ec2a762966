"""Options of masked pre-training, alone or beside a teacher's loss."""

import dataclasses
from typing import Annotated, Any, ClassVar

import pydantic

from limbeck.config import Depth, Few, NotNegative, Side, Width, options
from limbeck.errors import UserError
from limbeck.methods.options.base import MethodOptions


@options
class DecoderOptions:
    """MAE's decoder and target. Defaults: MAE-Lite's decoder for ViT-Tiny (one block), or the shape
    of the one that student.weights bring."""

    decoder_embed_dim: Width | None = None
    """Decoder width; half of the encoder's if not given, of a hierarchical one a quarter."""
    decoder_depth: Depth | None = None
    """Decoder blocks; 1 if not given."""
    decoder_num_heads: Width | None = None
    """Decoder heads; one per 32 channels if not given."""
    norm_pix_loss: bool = True
    """Each target patch is normalised by its own mean and variance."""
    fresh_decoder: bool = False
    """Start the decoder anew where student.weights bring one; without, theirs is loaded."""


@options
class MaskedPixelOptions(DecoderOptions, MethodOptions):
    """MAE: reconstruct masked patches, without a teacher."""

    needs_teacher: ClassVar[bool] = False

    mask_ratio: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.75


@options
class MaskTokenOptions:
    """SimMIM's mask and head. Defaults: its linear head."""

    mask_patch_size: Side = 32
    """Side in pixels of what is masked at once."""
    decoder_depth: Few = 0
    """Blocks between two linear layers (MAE-Lite's head for Swin has one); 0: one linear layer."""
    decoder_embed_dim: Width | None = None
    """Width of these blocks; 96 if not given."""
    decoder_num_heads: Width | None = None
    """Their heads; one per 32 channels if not given."""

    def __post_init__(self) -> None:
        if self.decoder_depth == 0 and (self.decoder_embed_dim or self.decoder_num_heads):
            raise UserError(
                "decoder_embed_dim and decoder_num_heads have no effect with decoder_depth 0, a "
                "linear head; set decoder_depth 1, or leave them out."
            )


@options
class SimMimOptions(MaskTokenOptions, MethodOptions):
    """SimMIM: predict masked pixels where a mask token came in, without a teacher."""

    needs_teacher: ClassVar[bool] = False

    mask_ratio: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.6


@options
class ReconstructionOptions(DecoderOptions):
    """MAE's loss beside that of a teacher."""

    weight: NotNegative = 0.0
    """Factor of the reconstruction loss; 0 is without."""
    before_block: Few | None = None
    """Reconstruct from what enters this block, from 0, instead of from the output; D2-MAE: 8."""

    def __post_init__(self) -> None:
        _check_weighted(self, "reconstruction")


@options
class RegressionOptions(MaskTokenOptions):
    """SimMIM's loss beside that of a teacher."""

    weight: NotNegative = 0.0
    """Factor of the regression loss; 0 is without."""
    before_block: Few | None = None
    """Predict from what enters this block, from 0, instead of from the output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weighted(self, "regression", but=("mask_patch_size",))


def _check_weighted(section: Any, name: str, but: tuple[str, ...] = ()) -> None:
    """Refuse what has no effect in a section that is switched off."""
    others = (f for f in dataclasses.fields(section) if f.name not in ("weight", *but))
    if section.weight == 0 and any(getattr(section, f.name) != f.default for f in others):
        raise UserError(
            f"The options of {name} have no effect with {name}.weight 0; set a weight, or leave "
            "them out."
        )
