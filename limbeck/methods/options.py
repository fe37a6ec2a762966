"""Options of the methods, one class each (no torch here, see ``limbeck.config``)."""

from typing import Annotated, ClassVar

import pydantic

from limbeck.config import options

PositiveInt = Annotated[int, pydantic.Field(gt=0)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]


@options
class MethodOptions:
    """What every method may set of the student's training: how the student is disturbed."""

    needs_teacher: ClassVar[bool] = True
    """False for a method that has none (a teacher is then refused)."""

    color_jitter: tuple[NotNegative, NotNegative, NotNegative] = (0.0, 0.0, 0.0)
    """Brightness, contrast, saturation of the student's view alone: factors in 1 +- value."""
    drop_path_rate: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Stochastic depth of the student: this rate in every block but the last."""


@options
class RelationOptions(MethodOptions):
    """TinyMIM's relations, default arm (QK + VV). Defaults: its released code."""

    color_jitter: tuple[NotNegative, NotNegative, NotNegative] = (0.4, 0.4, 0.4)
    drop_path_rate: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    teacher_block: int = -1
    """Target block of the teacher, from 0; negative from the end. Of ViT-L the study took 17."""


@options
class MaskedPixelOptions(MethodOptions):
    """MAE: reconstruct masked patches. Defaults: MAE-Lite's decoder for ViT-Tiny (one block)."""

    needs_teacher: ClassVar[bool] = False

    mask_ratio: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.75
    decoder_embed_dim: PositiveInt | None = None
    """Decoder width; half of the encoder's if not given."""
    decoder_depth: PositiveInt = 1
    decoder_num_heads: PositiveInt | None = None
    """Decoder heads; one per 32 channels if not given."""
    norm_pix_loss: bool = True
    """Each target patch is normalised by its own mean and variance."""


@options
class PerMethodOptions:
    """One section per built-in method: the field is the method's name with "_" for "-"."""

    relation: RelationOptions = RelationOptions()
    masked_pixel: MaskedPixelOptions = MaskedPixelOptions()
