"""Masked-pixel pre-training without a teacher: a masked autoencoder.

Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377; for small ViTs as in A Closer
Look at Self-Supervised Lightweight Vision Transformers, arXiv 2205.14443 (one-block decoder of
half the width). What we do differently: the mask follows from each view's seed, so that it does
not depend on the number of ranks.
"""

from dataclasses import replace

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.methods.method import Method
from limbeck.methods.options import MaskedPixelOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.models.mae import MaeDecoder
from limbeck.ops.losses import masked_pixel_loss, normalise_patches, patchify
from limbeck.ops.masking import is_masked, random_ids_keep
from limbeck.records import Batch, Features, Losses, Tap


class MaskedPixel(Method):
    """L = mean over masked patches of the mean squared error of their (normalised) pixels.

    The encoder sees only the patches kept; the decoder sees these and mask tokens. The decoder is
    owned here and vanishes from the finished student.
    """

    Options = MaskedPixelOptions

    mean: Tensor
    std: Tensor

    def __init__(
        self, options: MaskedPixelOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__()
        if teacher is not None:
            raise UserError("Masked-pixel pre-training has no teacher; leave --teacher out.")
        self.options = options
        self.patch_size = student.patch_size
        self.num_patches = student.grid[0] * student.grid[1]
        num_keep = int(self.num_patches * (1 - options.mask_ratio))
        if not 0 < num_keep < self.num_patches:
            raise UserError(
                f"masked_pixel.mask_ratio {options.mask_ratio} keeps {num_keep} of "
                f"{self.num_patches} patches; at least one must be kept and one masked."
            )
        self.student_taps = (Tap("output"),)
        self.teacher_taps = ()
        width = options.decoder_embed_dim or student.embed_dim // 2
        self.decoder = MaeDecoder(
            embed_dim=student.embed_dim,
            grid=student.grid,
            patch_size=student.patch_size,
            decoder_embed_dim=width,
            decoder_depth=options.decoder_depth,
            decoder_num_heads=options.decoder_num_heads or max(1, width // 32),
            has_cls_token=student.has_cls_token,
        )
        self.register_buffer("mean", torch.tensor(student.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(student.std).view(3, 1, 1), persistent=False)

    def prepare(self, batch: Batch) -> Batch:
        """Draw each sample's visible patches from its view seed."""
        ids_keep = random_ids_keep(batch.view_seeds, self.num_patches, self.options.mask_ratio)
        return replace(batch, ids_keep=ids_keep)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The reconstruction loss; its part is "pixel"."""
        del teacher
        assert student.tokens is not None and batch.ids_keep is not None
        prediction = self.decoder(student.tokens, batch.ids_keep)
        target = patchify((batch.images - self.mean) / self.std, self.patch_size)
        if self.options.norm_pix_loss:
            target = normalise_patches(target)
        loss = masked_pixel_loss(prediction, target, is_masked(batch.ids_keep, self.num_patches))
        return Losses(total=loss, parts={"pixel": loss.detach()})
