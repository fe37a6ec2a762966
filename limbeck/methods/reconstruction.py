"""MAE's reconstruction of masked patches, alone or beside another loss.

Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377; for small ViTs as in A Closer
Look at Self-Supervised Lightweight Vision Transformers, arXiv 2205.14443 (one-block decoder of
half the width). Decoders and targets are computed for masked patches alone, where they are last.
"""

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.methods.options import DecoderOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import Keepsake
from limbeck.models.mae import MaeDecoder
from limbeck.models.origins.decoder import DECODER, fill_decoder, keep_decoder
from limbeck.ops.losses import normalise_patches, patchify, squared_error
from limbeck.ops.masking import ids_masked
from limbeck.records import Batch, Features, Tap


class Reconstruction(nn.Module):
    """L = mean over masked patches of the mean squared error of their (normalised) pixels.

    Owns the decoder, which sees the student's visible tokens and mask tokens; ``taps`` is what it
    reads. With ``before_block`` that is the input of a block, through a LayerNorm of its own
    (D2-MAE, arXiv 2404.12210). The released code takes the student's final norm there, which then
    is fitted to that depth and wrong after the last block; ours is thrown away, and the student's
    final norm stays as it started, for a classifier to train.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, options: DecoderOptions, student: EncoderFacts, before_block: int | None = None
    ) -> None:
        super().__init__()
        self.norm_pix_loss = options.norm_pix_loss
        self.fresh_decoder = options.fresh_decoder
        self.patch_size = student.patch_size
        self.num_patches = student.grid[0] * student.grid[1]
        self.tap, self.norm = read_before(student, before_block)
        self.taps: tuple[Tap, ...] = (self.tap,)
        self.is_after_all = before_block is None
        width = options.decoder_embed_dim or student.embed_dim // 2
        self.decoder = MaeDecoder(
            embed_dim=student.tap_dim(self.tap),
            grid=student.grid,
            patch_size=student.patch_size,
            decoder_embed_dim=width,
            decoder_depth=options.decoder_depth,
            decoder_num_heads=options.decoder_num_heads or max(1, width // 32),
            has_cls_token=student.has_cls_token,
        )
        self.register_buffer("mean", torch.tensor(student.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(student.std).view(3, 1, 1), persistent=False)

    def recall(self, kept: dict[str, Keepsake]) -> None:
        """Load the decoder that the student's start brings.

        Raises UserError where it does not fit the options, and where starting it fresh is no
        choice because there is none. One that reads an inner block has nothing to go on with.
        """
        decoder = kept.get(DECODER) if self.is_after_all else None
        if decoder is None and self.fresh_decoder:
            raise UserError(
                "fresh_decoder has no effect: the student starts without a decoder; leave it out."
            )
        if decoder is not None and not self.fresh_decoder:
            fill_decoder(self.decoder, decoder)

    def keepsakes(self) -> dict[str, Keepsake]:
        """The decoder, in MAE's published names, where it reads the student's output."""
        return {} if not self.is_after_all else {DECODER: keep_decoder(self.decoder)}

    def forward(self, student: Features, batch: Batch) -> Tensor:
        """The loss, a scalar, of the student's features (its ``taps``) and the batch's images."""
        assert batch.ids_keep is not None
        tokens = self.norm(student.taps[self.tap])  # [B, prefix + kept, D]
        hidden = ids_masked(batch.ids_keep, self.num_patches)  # [B, masked]
        prediction = self.decoder(tokens, batch.ids_keep, hidden)
        patches = patchify((batch.images - self.mean) / self.std, self.patch_size)
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
