"""Generic distillation: the hidden tokens of a masked autoencoder's decoder, without labels.

Generic-to-Specific Distillation of Masked Autoencoders, arXiv 2302.14771, its first stage, as
released. Student and teacher see the same visible patches; the student gets a decoder of its own,
whose tokens are regressed, place by place, to those of a middle block of the teacher's. What we do
differently: the mask follows from each view's seed; the released student's decoder norm, pixel head
and encoder projection, which no loss reaches, are not built.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.health import Health
from limbeck.errors import UserError
from limbeck.methods.masking import DropPatches
from limbeck.methods.method import Method
from limbeck.methods.options import DecoderFeatureOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import Keepsake
from limbeck.models.mae import MaeDecoder, build_projection
from limbeck.models.origins.kept_decoder import (
    FEATURE_DECODER,
    FEATURE_HEADS,
    PROJECTIONS,
    fill_feature_decoder,
    keep_feature_decoder,
)
from limbeck.ops.losses import cosine_error, smooth_l1_error, squared_error, whiten
from limbeck.ops.masking import ids_masked
from limbeck.records import Batch, Features, Losses, Tap

OUTPUT, LAST_TOKENS = Tap("output"), Tap("tokens", -1)


class DecoderFeature(Method):
    """L = smooth L1 (beta 2) of P to t, mean over batch, tokens and channels.

    H_S: the residual stream after the student's decoder, without a last norm; P = MLP(H_S), two
    linear layers with GELU between. t = LN0(H_T): that of the teacher after ``target_block`` of its
    decoder, normalised over the channels of each token (biased variance + 1e-6, no affine weights).
    Compared are the CLS token, the visible and the masked patches, all alike.

    Beside it, with ``encoder_weight``, the same loss of the student encoder's output, through an
    MLP, and of the teacher's tokens after its last block, before its final norm. Both MLPs vanish
    with the method; they are kept, with the decoder, beside the finished student.

    Raises UserError where the two do not have the same tokens, for a teacher without a decoder, and
    for a student that is hierarchical or can't leave patches out.
    """

    Options = DecoderFeatureOptions
    health = Health(
        healthy_share=0.5,
        expected_share=0.1,
        plateau_causes=(
            "the learning rate is too low or too high (optim.base_lr), or the run too short "
            "(train.epochs)",
            "the teacher's decoder is not the one that was trained with its encoder (of MAE's "
            "files mae_pretrain_vit_base_full.pth has both; mae_pretrain_vit_base.pth is the "
            "encoder alone)",
            "the teacher was trained on images that are normalised otherwise",
        ),
    )

    def __init__(
        self, options: DecoderFeatureOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__()
        target = Tap("decoder_tokens", options.target_block)
        teacher = _check_teacher(teacher, target)
        _check_student(student)
        self.positions, self.encoder_weight = options.positions, options.encoder_weight
        self.fresh_decoder = options.fresh_decoder
        smooth_l1 = partial(smooth_l1_error, beta=options.beta)
        measures: dict[str, Callable[[Tensor, Tensor], Tensor]]
        measures = {"smooth-l1": smooth_l1, "mse": squared_error, "cosine": cosine_error}
        self.measure = measures[options.loss]
        self.has_cls = student.has_cls_token, teacher.has_cls_token
        if options.positions == "all" and self.has_cls[0] != self.has_cls[1]:
            one, other = ("student", "teacher") if self.has_cls[0] else ("teacher", "student")
            raise UserError(
                f"The {one} has a CLS token and the {other} has none, so that not all tokens can "
                "be compared; set --decoder-feature.positions patches."
            )
        self.masking = DropPatches(options.mask_ratio, student)
        self.num_patches = student.grid[0] * student.grid[1]
        width = options.decoder_embed_dim or default_width(student.embed_dim)
        self.decoder = MaeDecoder(
            embed_dim=student.tap_dim(OUTPUT),
            grid=student.grid,
            patch_size=None,
            decoder_embed_dim=width,
            decoder_depth=options.decoder_depth,
            decoder_num_heads=options.decoder_num_heads or default_num_heads(width),
            has_cls_token=student.has_cls_token,
        )
        self.decoderfeature_pred = build_projection(width, teacher.tap_dim(target))
        self.student_taps, self.teacher_taps = (OUTPUT,), (target,)
        if self.encoder_weight:
            widths = student.tap_dim(OUTPUT), teacher.tap_dim(LAST_TOKENS)
            self.encoderfeature_pred = build_projection(*widths)
            self.teacher_taps = (target, LAST_TOKENS)

    def recall(self, kept: dict[str, Keepsake]) -> None:
        """Go on with the decoder and the projections that the student's start brings.

        Raises UserError where they do not fit the options and the teacher, and where starting them
        fresh is no choice because there are none.
        """
        brought = kept.get(FEATURE_DECODER)
        if brought is None and self.fresh_decoder:
            raise UserError(
                "decoder_feature.fresh_decoder has no effect: the student starts without a decoder "
                "of features; leave it out."
            )
        if brought is not None and not self.fresh_decoder:
            fill_feature_decoder(self.decoder, self._projections(), brought)

    def keepsakes(self) -> dict[str, Keepsake]:
        """Decoder and projections, in the released names."""
        return {FEATURE_DECODER: keep_feature_decoder(self.decoder, self._projections())}

    def prepare(self, batch: Batch) -> Batch:
        """Draw each sample's visible patches, which both sides see, from its view seed."""
        masked: Batch = self.masking(batch)
        return replace(masked, teacher_ids_keep=masked.ids_keep)

    def shown_to_teacher(self) -> dict[str, Any] | None:
        """What the masking keeps; not known of a class with a ``prepare`` of its own."""
        return None if type(self).prepare is not DecoderFeature.prepare else self.masking.shown

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The losses "decoder" and, weighted, "encoder" where there is one."""
        assert teacher is not None and batch.ids_keep is not None
        tokens = student.taps[OUTPUT]  # [B, prefix + kept, D]
        decoded = self.decoder.decode(tokens, batch.ids_keep)  # [B, cls + L, Dd]
        losses = {
            "decoder": self._compare(
                self.decoderfeature_pred(self._pick(decoded, self.has_cls[0], batch.ids_keep)),
                self._pick(teacher.taps[self.teacher_taps[0]], self.has_cls[1], batch.ids_keep),
            )
        }
        if self.encoder_weight:
            keeps_cls = all(self.has_cls)
            own = _shared(tokens, student.num_prefix_tokens, keeps_cls)
            theirs = _shared(teacher.taps[LAST_TOKENS], teacher.num_prefix_tokens, keeps_cls)
            losses["encoder"] = self.encoder_weight * self._compare(
                self.encoderfeature_pred(own), theirs
            )
        total, at_zero = torch.stack(list(losses.values())).sum(dim=0)
        parts = {name: loss[0].detach() for name, loss in losses.items()}
        return Losses(total=total, parts=parts, at_zero=at_zero.detach())

    def _projections(self) -> dict[str, nn.Module]:
        return {name: each for name, each in self.named_children() if name in PROJECTIONS}

    def _compare(self, prediction: Tensor, tokens: Tensor) -> Tensor:
        """The loss of a prediction (B, N, D), and that of zero: two values."""
        target = whiten(tokens.detach())
        nothing = target.new_zeros(()).expand_as(target)
        return torch.stack((self.measure(prediction, target), self.measure(nothing, target)))

    def _pick(self, tokens: Tensor, has_cls: bool, ids_keep: Tensor) -> Tensor:
        """Of tokens (B, cls + L, D) those that are compared."""
        if self.positions == "all":
            return tokens
        patches = tokens[:, int(has_cls) :]
        if self.positions == "patches":
            return patches
        is_hidden = self.positions == "masked"
        ids = ids_masked(ids_keep, self.num_patches) if is_hidden else ids_keep
        return patches.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def default_width(embed_dim: int) -> int:
    """Of the decoder: two thirds of the encoder's, in steps of 32 (released: 128, 256, 512)."""
    return max(32, 32 * round(embed_dim / 48))


def default_num_heads(width: int) -> int:
    """Of the decoder: the released number for its width, else one per 32 channels."""
    return FEATURE_HEADS.get(width, max(1, width // 32))


def _shared(tokens: Tensor, num_prefix_tokens: int, keeps_cls: bool) -> Tensor:
    """The patches, after the CLS token, the first, where it is kept."""
    patches = tokens[:, num_prefix_tokens:]
    return torch.cat((tokens[:, :1], patches), dim=1) if keeps_cls else patches


def _check_teacher(teacher: EncoderFacts | None, target: Tap) -> EncoderFacts:
    assert teacher is not None  # as its options say; the recipe refuses others
    depth = teacher.decoder_depth
    if not depth:
        raise UserError(
            f"The teacher {teacher.origin.get('source', '')} has no decoder, whose tokens are "
            "learnt here; name a whole masked autoencoder: mae_pretrain_vit_base_full.pth, or a "
            "run of limbeck distill --method masked-pixel."
        )
    if not -depth <= target.block < depth:
        raise UserError(
            f"The teacher's decoder has {depth} blocks (0 to {depth - 1}, or -1 for the last); "
            f"there is no block {target.block}: change decoder_feature.target_block."
        )
    return teacher


def _check_student(student: EncoderFacts) -> None:
    name = student.architecture.get("name", "this encoder")
    if len(set(student.block_strides)) > 1:
        raise UserError(
            f"The student {name} is hierarchical: its tokens are not the patches of a masked "
            "autoencoder's decoder; choose a plain vision Transformer."
        )
    if not student.can_drop:
        raise UserError(
            f"The student {name} can't leave patches out, as a masked autoencoder does; choose "
            "another plain vision Transformer."
        )
