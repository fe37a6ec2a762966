"""Options of the methods that compare inner tensors of student and teacher."""

import dataclasses
from typing import Annotated, Literal

import pydantic

from limbeck.config import BlockIndex, NotNegative, PositiveFloat, Rate, Width, options
from limbeck.errors import UserError
from limbeck.methods.options.base import MethodOptions
from limbeck.methods.options.masked import ReconstructionOptions, RegressionOptions


@options
class ComparisonOptions(MethodOptions):
    """What all methods share that compare inner tensors of student and teacher."""

    mask_ratio: Rate = 0.0
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
    drop_path_rate: Rate = 0.1
    teacher_block: BlockIndex = -1
    """Target block of the teacher, from 0; negative from the end. Of ViT-L the study took 17."""
    student_block: BlockIndex = -1
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
    temperature: PositiveFloat = 1.0
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
        "qkv", "queries", "keys", "values", "attention_output", "attention_tokens", "mlp_output",
        "tokens", "output",
    ] = "qkv"  # fmt: skip
    """qkv: queries, keys and values, summed; attention_output and mlp_output: what the branch adds
    to the residual stream, attention_tokens and tokens: the stream after it; output: the tokens
    after the last block and the final norm."""
    beta: PositiveFloat = 2.0
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

    temperature: PositiveFloat = 1.0
    """Divides the channels of both sides before the softmax."""


@options
class ClsPatchOptions(ComparisonOptions):
    """CLS token and patches of the output, by cosine and smooth L1."""

    hidden_dim: Width | None = None
    """Width between the two layers of a projector; the teacher's if not given."""
    cosine_share: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.9
    """Weight of the cosine; the rest is that of smooth L1."""
    beta: PositiveFloat = 1.0
    """Where smooth L1 turns from squared to absolute error."""
    patch_weight: PositiveFloat = 1.0
    """Factor of the patches' loss, beside 1 of the CLS token's."""


@options
class OutputSimilarityOptions(ComparisonOptions):
    """How similar the output's patches are to each other, beside one vector of the image."""

    kind: Literal["kl", "gram"] = "kl"
    """kl: of softmaxes over each patch's similarities; gram: their mean squared error."""
    temperature: PositiveFloat = 0.07
    """Divides the similarities of both sides before the softmax."""
    weight: PositiveFloat = 1.0
    """Factor of the similarities' loss."""
    global_weight: NotNegative = 1.0
    """Factor of the loss of the CLS token (or mean of the patches), by cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        (default,) = (f.default for f in dataclasses.fields(self) if f.name == "temperature")
        if self.kind == "gram" and self.temperature != default:
            raise UserError(
                "output_similarity.temperature has no effect with the kind 'gram'; leave it out."
            )


@options
class AttentionMapOptions(ComparisonOptions):
    """Attention scores of block pairs, beside a reconstruction. Defaults: D-MAE as released."""

    mask_ratio: Rate = 0.75
    reconstruction: ReconstructionOptions = ReconstructionOptions(weight=1.0)
    regression: RegressionOptions = RegressionOptions(weight=1.0)
    block_pairs: tuple[tuple[BlockIndex, BlockIndex], ...] = ((-1, -1),)
    """Student's and teacher's blocks, from 0; negative from the end. Of the target tokens: the
    normed input of that block, and depth (or -1) is the final output."""
    target: Literal["scores", "maps", "tokens"] = "scores"
    """scores: before the softmax, by squared error; maps: after it, by KL; tokens: hidden states,
    by squared error."""
    mixer: Literal["learned", "identity"] = "learned"
    """A learned linear map, without bias, of the student's heads (of the target tokens: of its
    channels) to the teacher's, one per pair; or none, where both have as many."""
    weight: PositiveFloat = 1.0
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
