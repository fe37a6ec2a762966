"""Options of the methods, one class each (no torch here, see ``limbeck.config``)."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import pydantic

from limbeck.config import options
from limbeck.errors import UserError

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
class DecoderOptions:
    """MAE's decoder and target. Defaults: MAE-Lite's decoder for ViT-Tiny (one block)."""

    decoder_embed_dim: PositiveInt | None = None
    """Decoder width; half of the encoder's if not given, of a hierarchical one a quarter."""
    decoder_depth: PositiveInt = 1
    decoder_num_heads: PositiveInt | None = None
    """Decoder heads; one per 32 channels if not given."""
    norm_pix_loss: bool = True
    """Each target patch is normalised by its own mean and variance."""


@options
class MaskedPixelOptions(DecoderOptions, MethodOptions):
    """MAE: reconstruct masked patches, without a teacher."""

    needs_teacher: ClassVar[bool] = False

    mask_ratio: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.75


@options
class ReconstructionOptions(DecoderOptions):
    """MAE's loss beside that of a teacher."""

    weight: NotNegative = 0.0
    """Factor of the reconstruction loss; 0 is without."""

    def __post_init__(self) -> None:
        decoder = dataclasses.fields(DecoderOptions)
        is_changed = any(getattr(self, field.name) != field.default for field in decoder)
        if self.weight == 0 and is_changed:
            raise UserError(
                "The options of reconstruction have no effect with reconstruction.weight 0; set a "
                "weight, or leave them out."
            )


@options
class TransferOptions(MethodOptions):
    """What all arms of the TinyMIM study share. Defaults: its released code."""

    color_jitter: tuple[NotNegative, NotNegative, NotNegative] = (0.4, 0.4, 0.4)
    drop_path_rate: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    teacher_block: int = -1
    """Target block of the teacher, from 0; negative from the end. Of ViT-L the study took 17."""
    student_block: int = -1
    """Block of the student that learns from it; the study took the last."""
    mask_ratio: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Share of the patches that the student does not see; 0 shows it all."""
    teacher_sees: Literal["visible", "all"] = "visible"
    """With a mask: the student's visible patches, or all of the image (compared where visible)."""
    reconstruction: ReconstructionOptions = ReconstructionOptions()

    def __post_init__(self) -> None:
        if self.mask_ratio == 0 and self.teacher_sees != "visible":
            raise UserError("teacher_sees has no effect with mask_ratio 0; leave one of them out.")
        if self.mask_ratio == 0 and self.reconstruction.weight > 0:
            raise UserError(
                "reconstruction.weight needs masked patches to reconstruct; set mask_ratio (0.75 "
                "in the study)."
            )


@options
class RelationOptions(TransferOptions):
    """TinyMIM's relations between tokens. Defaults: QK + VV, each through a softmax."""

    relations: tuple[Literal["qq", "kk", "vv", "qk"], ...] = ("qk", "vv")
    """Which relations are summed, weights 1:1: of queries, keys and values with each other."""
    softmax: bool = True
    """Compare row-wise softmaxes by KL; without, the scaled products by their squared error."""
    temperature: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Divides the products of both sides before the softmax."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.relations or len(set(self.relations)) < len(self.relations):
            raise UserError(
                "relation.relations names each of qq, kk, vv, qk at most once, and at least one."
            )
        if not self.softmax and self.temperature != 1:
            raise UserError("relation.temperature has no effect without softmax; leave it out.")


@options
class FeatureOptions(TransferOptions):
    """Features of a block through a linear projection, by smooth L1. Default: the study's best."""

    target: Literal[
        "qkv",
        "queries",
        "keys",
        "values",
        "attention_output",
        "attention_tokens",
        "mlp_output",
        "tokens",
        "output",
    ] = "qkv"
    """qkv: queries, keys and values, summed; attention_output and mlp_output: what the branch adds
    to the residual stream, attention_tokens and tokens: the stream after it; output: the tokens
    after the last block and the final norm."""
    beta: Annotated[float, pydantic.Field(gt=0)] = 2.0
    """Where smooth L1 turns from squared to absolute error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target == "output" and (self.teacher_block, self.student_block) != (-1, -1):
            raise UserError(
                "feature.teacher_block and feature.student_block have no effect with the target "
                "'output', which comes after all blocks; the target 'tokens' has a block."
            )


@options
class ClsTokenOptions(TransferOptions):
    """The CLS token through a linear projection, by KL over its channels."""

    temperature: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Divides the channels of both sides before the softmax."""


@options
class LogitOptions:
    """A classification teacher beside the labels. Defaults: DeiT's."""

    kind: Literal["hard", "soft"] = "hard"
    """hard: the teacher's most likely class is a label; soft: its probabilities are matched. In
    bf16 (--teacher.precision) classes whose logits differ by less than 1/256 of them may tie, and
    the first is taken."""
    weight: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    """Share of the teacher's loss, the labels have the rest; 0.5 if hard, 0.1 if soft."""
    temperature: Annotated[float, pydantic.Field(gt=0)] | None = None
    """Divides the logits of both sides, soft only; 3 if not given."""

    def __post_init__(self) -> None:
        if self.kind == "hard" and self.temperature is not None:
            raise UserError(
                "logit.temperature has no effect with hard labels; leave it out, or choose "
                "logit.kind soft."
            )


@options
class PerTaskMethodOptions:
    """One section per built-in method of fine-tuning, named as in ``PerMethodOptions``."""

    logit: LogitOptions = LogitOptions()


@options
class PerMethodOptions:
    """One section per built-in method: the field is the method's name with "_" for "-"."""

    relation: RelationOptions = RelationOptions()
    feature: FeatureOptions = FeatureOptions()
    cls_token: ClsTokenOptions = ClsTokenOptions()
    masked_pixel: MaskedPixelOptions = MaskedPixelOptions()
