"""Options of the methods, one class each (no torch here, see ``limbeck.config``)."""

from typing import Annotated

import pydantic

from limbeck.config import options

PositiveInt = Annotated[int, pydantic.Field(gt=0)]


@options
class RelationOptions:
    """TinyMIM's relations; the default arm, QK + VV, needs no options."""


@options
class MaskedPixelOptions:
    """MAE: reconstruct masked patches. Defaults: MAE-Lite's decoder for ViT-Tiny (one block)."""

    mask_ratio: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.75
    decoder_embed_dim: PositiveInt | None = None
    """Decoder width; half of the encoder's if not given."""
    decoder_depth: PositiveInt = 1
    decoder_num_heads: PositiveInt | None = None
    """Decoder heads; one per 32 channels if not given."""
    norm_pix_loss: bool = True
    """Each target patch is normalised by its own mean and variance."""
