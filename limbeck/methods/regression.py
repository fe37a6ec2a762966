"""SimMIM's regression of masked pixels, alone or beside another loss.

SimMIM: A Simple Framework for Masked Image Modeling, arXiv 2111.09886; with blocks in the head, or
before a late block, as An Experimental Study on Exploring Strong Lightweight Vision Transformers
via Masked Image Modeling Pre-Training, arXiv 2404.12210, has it for Swin.
"""

import torch
from torch import Tensor, nn

from limbeck.methods.options import MaskTokenOptions
from limbeck.methods.reconstruction import read_before
from limbeck.models.encoder import EncoderFacts
from limbeck.models.pixel_head import PixelHead
from limbeck.ops.losses import masked_l1_loss, patchify
from limbeck.ops.masking import is_masked
from limbeck.records import Batch, Features, Tap


class Regression(nn.Module):
    """L = mean of the absolute error of masked pixels, normalised by the encoder's mean and std.

    Each token predicts the pixels that it stands for, all of them: a stride of 32 makes 32 x 32 x
    3. Owns the head; ``taps`` is what it reads, with ``before_block`` the input of a block, through
    a LayerNorm of its own as in ``Reconstruction``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, options: MaskTokenOptions, student: EncoderFacts, before_block: int | None = None
    ) -> None:
        super().__init__()
        self.tap, self.norm = read_before(student, before_block)
        self.taps: tuple[Tap, ...] = (self.tap,)
        self.stride = student.tap_stride(self.tap)
        self.mask_unit, self.mask_grid = student.mask_unit, student.mask_grid
        width = options.decoder_embed_dim or 96
        self.head = PixelHead(
            embed_dim=student.tap_dim(self.tap),
            patch_size=self.stride,
            decoder_embed_dim=width,
            decoder_depth=options.decoder_depth,
            decoder_num_heads=options.decoder_num_heads or max(1, width // 32),
        )
        self.register_buffer("mean", torch.tensor(student.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(student.std).view(3, 1, 1), persistent=False)

    def forward(self, student: Features, batch: Batch) -> Tensor:
        """The loss, a scalar, of the student's features (its ``taps``) and the batch's images."""
        assert batch.ids_keep is not None
        tokens = self.norm(student.taps[self.tap])[:, student.num_prefix_tokens :]
        target = patchify((batch.images - self.mean) / self.std, self.stride)
        rows, columns = self.mask_grid
        hidden = is_masked(batch.ids_keep, rows * columns).unflatten(1, (rows, columns))
        pixels = hidden.repeat_interleave(self.mask_unit, 1).repeat_interleave(self.mask_unit, 2)
        pixels = pixels.unsqueeze(1).expand(-1, 3, -1, -1)  # [B, 3, H, W]
        return masked_l1_loss(self.head(tokens), target, patchify(pixels, self.stride))
