"""The live teacher: a frozen encoder as a value."""

import torch
from torch import Tensor, nn

from limbeck.engine.machine import DTYPES, Precision
from limbeck.methods.method import Method
from limbeck.models.attention import choose_attention
from limbeck.models.encoder import Encoder, EncoderFacts, check_taps
from limbeck.ops.resize import resize_images
from limbeck.records import Batch, Features, Tap


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Autocast to a precision; fp32 states that there is none, also inside another autocast."""
    lower = precision != "fp32"
    return torch.autocast(device.type, DTYPES[precision] if lower else None, enabled=lower)


class Teacher:
    """A frozen encoder: no gradients, always in evaluation mode, not a module.

    Because it is no ``nn.Module``, the module that holds it neither trains, saves, moves nor wraps
    it. Its matrices are cast once to ``precision``; norms and the residual stream stay float32,
    which is what autocast computes, without casting the weights again at every step. What comes
    after the last block, so the classifier, is not cast: of logits in bf16 the largest may tie.
    """

    def __init__(
        self, encoder: Encoder, device: torch.device, precision: Precision = "fp32"
    ) -> None:
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        self.precision = precision
        self.device = device
        for name, module in self.encoder.named_modules():
            is_matrix = isinstance(module, nn.Linear | nn.Conv2d)
            if is_matrix and encoder.layer_id(f"{name}.weight") <= encoder.facts.depth:
                module.to(DTYPES[precision])
        choose_attention(self.encoder, device, DTYPES[precision])

    def answer(self, batch: Batch, taps: tuple[Tap, ...]) -> Features:
        """Features of what a prepared batch shows the teacher."""
        replaces = batch.mask_token is not None
        return self(batch.teacher_images, batch.teacher_ids_keep, taps, replaces=replaces)

    def check(self, method: Method) -> None:
        """Raise UserError unless the encoder offers the taps that the method asks for."""
        check_taps(self.encoder, method.teacher_taps, "teacher")

    @property
    def facts(self) -> EncoderFacts:
        """The encoder's facts."""
        return self.encoder.facts

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        ids_keep: Tensor | None,
        taps: tuple[Tap, ...],
        *,
        replaces: bool = False,
    ) -> Features:
        """Features of images (B, 3, H, W) in 0..1, resized to the teacher's own size first.

        With ``replaces`` its own mask token stands for what is not kept; one without sees it all.
        """
        images = resize_images(images, self.facts.img_size)
        mask_token = self.encoder.mask_token if replaces and ids_keep is not None else None
        if replaces and mask_token is None:
            ids_keep = None
        with autocast(self.device, self.precision):
            return self.encoder(images, ids_keep, taps, mask_token)
