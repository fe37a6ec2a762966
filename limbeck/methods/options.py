"""Options of the methods, one class each (no torch here, see ``limbeck.config``)."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import pydantic

from limbeck.config import options
from limbeck.data.options import CropOptions, Probability, ViewOptions
from limbeck.errors import UserError

PositiveInt = Annotated[int, pydantic.Field(gt=0)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]


@options
class MethodOptions:
    """What every method may set of the student's training: how the student is disturbed."""

    needs_teacher: ClassVar[bool] = True
    """False for a method that has none (a teacher is then refused)."""
    trains_classifier: ClassVar[bool] = False
    """True where the student gets a classifier of the teacher's classes."""

    color_jitter: tuple[NotNegative, NotNegative, NotNegative] = (0.0, 0.0, 0.0)
    """Brightness, contrast, saturation of the student's view alone: factors in 1 +- value."""
    drop_path_rate: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Stochastic depth of the student: this rate in every block but the last."""

    def for_next_stage(self) -> "MethodOptions":
        """The options of a chain's next stage, whose teacher is the student of this one."""
        return self

    def views(self, crop: CropOptions) -> tuple[ViewOptions, ...]:
        """The views that are made of each image, with the crop and flip that the run states."""
        return (ViewOptions(**dataclasses.asdict(crop), color_jitter=self.color_jitter),)

    def local_views(self, crop: CropOptions) -> tuple[tuple[ViewOptions, int], ...]:
        """Further, smaller views of each image, and their sides in pixels."""
        del crop
        return ()


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

    mask_patch_size: PositiveInt = 32
    """Side in pixels of what is masked at once."""
    decoder_depth: Annotated[int, pydantic.Field(ge=0)] = 0
    """Blocks between two linear layers (MAE-Lite's head for Swin has one); 0: one linear layer."""
    decoder_embed_dim: PositiveInt | None = None
    """Width of these blocks; 96 if not given."""
    decoder_num_heads: PositiveInt | None = None
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
    momentum: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.99
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

    temperature: Annotated[float, pydantic.Field(gt=0)] = 0.2
    hidden_dim: PositiveInt = 4096
    """Width of the projector's and the predictor's hidden layers."""
    out_dim: PositiveInt = 256
    """Width in which views are compared."""


@options
class DinoOptions(TwoViewOptions):
    """DINO: a view says what the momentum encoder says of another one. Defaults: the paper's, with
    fewer outputs and two views only, for small data."""

    momentum: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.996
    temperature: Annotated[float, pydantic.Field(gt=0)] = 0.1
    """Of the student's softmax."""
    teacher_temperature: Annotated[float, pydantic.Field(gt=0)] = 0.04
    """Of the momentum encoder's."""
    center_momentum: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.9
    """Of the mean output that is taken from the momentum encoder's."""
    hidden_dim: PositiveInt = 2048
    """Width of the head's hidden layers."""
    bottleneck_dim: PositiveInt = 256
    out_dim: PositiveInt = 4096
    """Outputs; the paper has 65536."""
    last_layer_frozen: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.01
    """Part of the run at whose start the last layer stays as it is (the paper: one epoch)."""
    num_local_crops: Annotated[int, pydantic.Field(ge=0)] = 0
    """Small crops that only the student sees; the paper has 6 to 10 of them."""
    local_img_size: PositiveInt = 96
    """Their side in pixels."""
    local_scale: tuple[float, float] = (0.05, 0.4)
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


@options
class ReconstructionOptions(DecoderOptions):
    """MAE's loss beside that of a teacher."""

    weight: NotNegative = 0.0
    """Factor of the reconstruction loss; 0 is without."""
    before_block: Annotated[int, pydantic.Field(ge=0)] | None = None
    """Reconstruct from what enters this block, from 0, instead of from the output; D2-MAE: 8."""

    def __post_init__(self) -> None:
        _check_weighted(self, "reconstruction")


@options
class RegressionOptions(MaskTokenOptions):
    """SimMIM's loss beside that of a teacher."""

    weight: NotNegative = 0.0
    """Factor of the regression loss; 0 is without."""
    before_block: Annotated[int, pydantic.Field(ge=0)] | None = None
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


@options
class ComparisonOptions(MethodOptions):
    """What all methods share that compare inner tensors of student and teacher."""

    mask_ratio: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Share of the patches that the student does not see; 0 shows it all."""
    masking: Literal["drop", "mask-token"] = "drop"
    """What becomes of these: the student does without them (MAE), or a learned token stands for
    each (SimMIM), for a student that can't drop them."""
    teacher_sees: Literal["visible", "all"] = "visible"
    """With a mask: the student's visible patches, or all of the image (compared where visible).
    Under masking mask-token a teacher that has no mask token of its own sees all."""
    reconstruction: ReconstructionOptions = ReconstructionOptions()
    """Of masking drop."""
    regression: RegressionOptions = RegressionOptions()
    """Of masking mask-token."""

    def __post_init__(self) -> None:
        by_masking = {"drop": "reconstruction", "mask-token": "regression"}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for masking, name in by_masking.items():
            if masking != self.masking and getattr(self, name) != defaults[name]:
                raise UserError(
                    f"The options of {name} have no effect with masking {self.masking}; those of "
                    f"{by_masking[self.masking]} have."
                )
        if self.mask_ratio == 0 and self.teacher_sees != "visible":
            raise UserError("teacher_sees has no effect with mask_ratio 0; leave one of them out.")
        if self.mask_ratio == 0 and self.masking != "drop":
            raise UserError("masking has no effect with mask_ratio 0; leave one of them out.")
        if self.mask_ratio == 0 and self.reconstruction.weight > 0:
            raise UserError(
                "reconstruction.weight needs masked patches to reconstruct; set mask_ratio (0.75 "
                "in the study), or reconstruction.weight 0."
            )


@options
class TransferOptions(ComparisonOptions):
    """What all arms of the TinyMIM study share. Defaults: its released code."""

    color_jitter: tuple[NotNegative, NotNegative, NotNegative] = (0.4, 0.4, 0.4)
    drop_path_rate: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    teacher_block: int = -1
    """Target block of the teacher, from 0; negative from the end. Of ViT-L the study took 17."""
    student_block: int = -1
    """Block of the student that learns from it; the study took the last."""

    def for_next_stage(self) -> "MethodOptions":
        """Its teacher is read where it has learnt."""
        return dataclasses.replace(self, teacher_block=self.student_block)


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
class AttentionMapOptions(ComparisonOptions):
    """Attention scores of block pairs, beside a reconstruction. Defaults: D-MAE as released."""

    mask_ratio: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.75
    reconstruction: ReconstructionOptions = ReconstructionOptions(weight=1.0)
    regression: RegressionOptions = RegressionOptions(weight=1.0)
    block_pairs: tuple[tuple[int, int], ...] = ((-1, -1),)
    """Student's and teacher's blocks, from 0; negative from the end. Of the target tokens: the
    normed input of that block, and depth (or -1) is the final output."""
    target: Literal["scores", "maps", "tokens"] = "scores"
    """scores: before the softmax, by squared error; maps: after it, by KL; tokens: hidden states,
    by squared error."""
    mixer: Literal["learned", "identity"] = "learned"
    """A learned linear map, without bias, of the student's heads (of the target tokens: of its
    channels) to the teacher's, one per pair; or none, where both have as many."""
    weight: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Factor of the teacher's loss, alpha."""
    decoupled: bool = False
    """D2-MAE: the scores are those of a throw-away block after the student's last, and the
    reconstruction leaves before block 8 of 12, as in the study (two thirds of a plain student's
    blocks) if its before_block (of masking mask-token the regression's) is not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.block_pairs or len(set(self.block_pairs)) < len(self.block_pairs):
            raise UserError("attention_map.block_pairs names each pair once, and at least one.")
        if self.decoupled and (self.target == "tokens" or self.block_pairs[0][0] != -1):
            raise UserError(
                "attention_map.decoupled compares scores or maps of a block after the student's "
                "last; leave it out, or name student block -1 and another target than tokens."
            )
        if self.decoupled and len(self.block_pairs) > 1:
            raise UserError(
                "attention_map.decoupled has one throw-away block, so one of block_pairs; name one."
            )

    def for_next_stage(self) -> "MethodOptions":
        """Its teacher is read where it has learnt."""
        pairs = tuple((own, own) for own, _ in self.block_pairs)
        return dataclasses.replace(self, block_pairs=tuple(dict.fromkeys(pairs)))


@options
class LogitOptions:
    """A classification teacher beside the labels. Defaults: DeiT's."""

    kind: Literal["hard", "soft"] = "hard"
    """hard: the teacher's most likely class is a label; soft: its probabilities are matched."""
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
