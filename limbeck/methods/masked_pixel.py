"""Masked-pixel pre-training without a teacher: a masked autoencoder.

The mask, the loss and their sources are in ``masking.py`` and ``reconstruction.py``.
"""

from limbeck.methods.masking import DropPatches
from limbeck.methods.method import Method
from limbeck.methods.options import MaskedPixelOptions
from limbeck.methods.reconstruction import Reconstruction
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import Keepsake
from limbeck.records import Batch, Features, Losses


class MaskedPixel(Method):
    """L = the reconstruction loss (MAE, arXiv 2111.06377).

    The encoder sees only the patches kept; the decoder sees these and mask tokens. The decoder is
    owned here and kept beside the finished student.
    """

    Options = MaskedPixelOptions

    def __init__(
        self, options: MaskedPixelOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__()
        self.masking = DropPatches(options.mask_ratio, student)
        self.reconstruction = Reconstruction(options, student)
        self.student_taps = self.reconstruction.taps
        self.teacher_taps = ()

    def recall(self, kept: dict[str, Keepsake]) -> None:
        self.reconstruction.recall(kept)

    def keepsakes(self) -> dict[str, Keepsake]:
        """The decoder."""
        return self.reconstruction.keepsakes()

    def prepare(self, batch: Batch) -> Batch:
        return self.masking(batch)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The reconstruction loss; its part is "pixel"."""
        del teacher
        loss = self.reconstruction(student, batch)
        return Losses(total=loss, parts={"pixel": loss.detach()})
