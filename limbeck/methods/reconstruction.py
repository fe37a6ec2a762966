"""MAE's reconstruction of masked patches, alone or beside another loss.

Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377; for small ViTs as in A Closer
Look at Self-Supervised Lightweight Vision Transformers, arXiv 2205.14443 (one-block decoder of
half the width). Decoders and targets are computed for masked patches alone, where they are last.
Of a hierarchical student the decoder reads all stages (Hiera, arXiv 2306.00989).
"""

from functools import partial
from math import ceil

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.methods.options import DecoderOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import Keepsake
from limbeck.models.mae import MaeDecoder
from limbeck.models.origins.kept_decoder import DECODER, complete_shape, fill_decoder, keep_decoder
from limbeck.models.stage_fusion import StageFusion
from limbeck.ops.losses import normalise_patches, patchify, squared_error
from limbeck.ops.masking import ids_masked, split_units
from limbeck.records import Batch, Features, Tap


class Reconstruction(nn.Module):
    """L = mean over masked patches of the mean squared error of their (normalised) pixels.

    Owns the decoder, which sees the student's visible tokens and mask tokens; ``taps`` is what it
    reads. With ``before_block`` that is the input of a block, through a LayerNorm of its own
    (D2-MAE, arXiv 2404.12210). The released code takes the student's final norm there, which then
    is fitted to that depth and wrong after the last block; ours is thrown away, and the student's
    final norm stays as it started, for a classifier to train.

    Of a hierarchical student, whose mask units have several tokens, these are predicted one by one
    (16 x 16 pixels at 224), each in the order channel, row, column, as published; the decoder's
    positions are learned.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, options: DecoderOptions, student: EncoderFacts, before_block: int | None = None
    ) -> None:
        super().__init__()
        self.norm_pix_loss = options.norm_pix_loss
        self.fresh_decoder = options.fresh_decoder
        self.tap, self.norm = read_before(student, before_block)
        self.taps: tuple[Tap, ...] = (self.tap,)
        self.fusion = None
        is_hierarchical = len(set(student.block_strides)) > 1
        if is_hierarchical and before_block is None:
            self.fusion = StageFusion(student)
            self.taps = self.fusion.taps
        self.patch_size = student.tap_stride(self.tap)
        self.mask_grid, self.unit_side = student.mask_grid, student.mask_unit // self.patch_size
        self.is_channel_first = is_hierarchical
        # The decoder of a published file reads the output of a plain ViT.
        self.is_published = before_block is None and not is_hierarchical
        width = options.decoder_embed_dim or student.embed_dim // 2
        if is_hierarchical and not options.decoder_embed_dim:
            width = 32 * ceil(student.embed_dim / 128)  # Hiera-46 of arXiv 2404.12210: 96 of 368
        rows, columns = (side // self.patch_size for side in student.img_size)
        self.build_decoder = partial(
            MaeDecoder,
            embed_dim=student.tap_dim(self.tap),
            grid=(rows, columns),
            patch_size=self.patch_size,
            has_cls_token=student.has_cls_token,
            has_learned_positions=is_hierarchical,
        )
        shape = options.decoder_embed_dim, options.decoder_depth, options.decoder_num_heads
        self.asked_shape = shape
        self.decoder = self.build_decoder(
            decoder_embed_dim=width,
            decoder_depth=options.decoder_depth or 1,
            decoder_num_heads=options.decoder_num_heads or max(1, width // 32),
        )
        self.register_buffer("mean", torch.tensor(student.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(student.std).view(3, 1, 1), persistent=False)

    def recall(self, kept: dict[str, Keepsake]) -> None:
        """Load the decoder that the student's start brings, in its own shape unless one is asked.

        Raises UserError where it does not fit the options, and where starting it fresh is no
        choice because there is none. One that reads an inner block has nothing to go on with.
        """
        decoder = kept.get(DECODER) if self.is_published else None
        if decoder is None and self.fresh_decoder:
            raise UserError(
                "fresh_decoder has no effect: the student starts without a decoder; leave it out."
            )
        if decoder is not None and not self.fresh_decoder:
            width, depth, num_heads = complete_shape(decoder, *self.asked_shape)
            with torch.random.fork_rng(devices=[]):  # of weights that are replaced at once
                self.decoder = self.build_decoder(
                    decoder_embed_dim=width, decoder_depth=depth, decoder_num_heads=num_heads
                )
            fill_decoder(self.decoder, decoder)

    def keepsakes(self) -> dict[str, Keepsake]:
        """The decoder, in MAE's published names, where it reads the student's output."""
        return {} if not self.is_published else {DECODER: keep_decoder(self.decoder)}

    def forward(self, student: Features, batch: Batch) -> Tensor:
        """The loss, a scalar, of the student's features (its ``taps``) and the batch's images."""
        assert batch.ids_keep is not None
        taps, fuse = student.taps, self.fusion
        read = self.norm(taps[self.tap]) if fuse is None else fuse(taps)  # [B, prefix + kept, D]
        hidden = ids_masked(batch.ids_keep, self.mask_grid[0] * self.mask_grid[1])
        kept, hidden = (
            split_units(ids, self.mask_grid, self.unit_side) for ids in (batch.ids_keep, hidden)
        )
        prediction = self.decoder(read, kept, hidden)  # [B, masked, pixels]
        images = (batch.images - self.mean) / self.std
        patches = patchify(images, self.patch_size, is_channel_first=self.is_channel_first)
        target = patches.gather(1, hidden.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        if self.norm_pix_loss:
            target = normalise_patches(target)
        return squared_error(prediction, target)


def read_before(student: EncoderFacts, block: int | None) -> tuple[Tap, nn.Module]:
    """The input of a block and a new LayerNorm for it; without a block the output, as it is."""
    if block is None:
        return Tap("output"), nn.Identity()
    if block >= student.depth:
        raise UserError(
            f"The student has {student.depth} blocks (0 to {student.depth - 1}); there is no block "
            f"{block}: change before_block."
        )
    tap = Tap("block_input", block)
    return tap, nn.LayerNorm(student.tap_dim(tap), eps=1e-6)
