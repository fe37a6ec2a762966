"""Masked-pixel pre-training without a teacher: a masked autoencoder.

The loss and its sources are in ``reconstruction.py``. What we do differently: the mask follows from
each view's seed, so that it does not depend on the number of ranks.
"""

from dataclasses import replace

from limbeck.errors import UserError
from limbeck.methods.method import Method
from limbeck.methods.options import MaskedPixelOptions
from limbeck.methods.reconstruction import Reconstruction, count_units
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.masking import random_ids_keep
from limbeck.records import Batch, Features, Losses


class MaskedPixel(Method):
    """L = the reconstruction loss (MAE, arXiv 2111.06377).

    The encoder sees only the patches kept; the decoder sees these and mask tokens. The decoder is
    owned here and vanishes from the finished student.
    """

    Options = MaskedPixelOptions

    def __init__(
        self, options: MaskedPixelOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__()
        if teacher is not None:
            raise UserError("Masked-pixel pre-training has no teacher; leave --teacher out.")
        self.mask_ratio = options.mask_ratio
        self.num_units = count_units(student, options.mask_ratio)
        self.reconstruction = Reconstruction(options, student)
        self.student_taps = self.reconstruction.taps
        self.teacher_taps = ()

    def prepare(self, batch: Batch) -> Batch:
        """Draw each sample's visible patches from its view seed."""
        ids_keep = random_ids_keep(batch.view_seeds, self.num_units, self.mask_ratio)
        return replace(batch, ids_keep=ids_keep)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The reconstruction loss; its part is "pixel"."""
        del teacher
        loss = self.reconstruction(student, batch)
        return Losses(total=loss, parts={"pixel": loss.detach()})
