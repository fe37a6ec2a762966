"""MAE's reconstruction of masked patches, alone or beside another loss.

Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377; for small ViTs as in A Closer
Look at Self-Supervised Lightweight Vision Transformers, arXiv 2205.14443 (one-block decoder of
half the width).
"""

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.methods.options import DecoderOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import Keepsake
from limbeck.models.mae import MaeDecoder
from limbeck.models.origins.decoder import DECODER, fill_decoder, keep_decoder
from limbeck.ops.losses import masked_pixel_loss, normalise_patches, patchify
from limbeck.ops.masking import is_masked


class Reconstruction(nn.Module):
    """L = mean over masked patches of the mean squared error of their (normalised) pixels.

    Owns the decoder, which sees the student's visible tokens and mask tokens.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, options: DecoderOptions, student: EncoderFacts) -> None:
        super().__init__()
        self.norm_pix_loss = options.norm_pix_loss
        self.fresh_decoder = options.fresh_decoder
        self.patch_size = student.patch_size
        self.num_patches = student.grid[0] * student.grid[1]
        width = options.decoder_embed_dim or student.embed_dim // 2
        self.decoder = MaeDecoder(
            embed_dim=student.output_dim,
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
        choice because there is none.
        """
        decoder = kept.get(DECODER)
        if decoder is None and self.fresh_decoder:
            raise UserError(
                "fresh_decoder has no effect: the student starts without a decoder; leave it out."
            )
        if decoder is not None and not self.fresh_decoder:
            fill_decoder(self.decoder, decoder)

    def keepsakes(self) -> dict[str, Keepsake]:
        """The decoder, in MAE's published names."""
        return {DECODER: keep_decoder(self.decoder)}

    def forward(self, tokens: Tensor, ids_keep: Tensor, images: Tensor) -> Tensor:
        """The loss, a scalar: ``tokens`` (B, prefix + kept, D) after the student's final norm."""
        prediction = self.decoder(tokens, ids_keep)
        target = patchify((images - self.mean) / self.std, self.patch_size)
        if self.norm_pix_loss:
            target = normalise_patches(target)
        return masked_pixel_loss(prediction, target, is_masked(ids_keep, self.num_patches))


def check_mask_ratio(mask_ratio: float, num_patches: int) -> None:
    """Raise UserError unless at least one patch is kept and one masked."""
    num_keep = int(num_patches * (1 - mask_ratio))
    if not 0 < num_keep < num_patches:
        raise UserError(
            f"mask_ratio {mask_ratio} keeps {num_keep} of {num_patches} patches; at least one must "
            "be kept and one masked."
        )
