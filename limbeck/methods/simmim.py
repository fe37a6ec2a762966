"""Masked-pixel pre-training with a mask token, without a teacher: SimMIM, arXiv 2111.09886.

For encoders that can't drop patches, and for those that can. The mask and the loss are in
``masking.py`` and ``regression.py``. What we do differently: the learning rate follows the schedule
of all methods; the released one steps at an epoch that the run never reaches.
"""

from limbeck.methods.masking import MaskTokens
from limbeck.methods.method import Method
from limbeck.methods.options import SimMimOptions
from limbeck.methods.regression import Regression
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import Keepsake
from limbeck.records import Batch, Features, Losses


class SimMim(Method):
    """L = mean absolute error of masked pixels, predicted from the token in whose place they are.

    Mask token and head are owned here; the token is kept beside the finished student.
    """

    Options = SimMimOptions

    def __init__(
        self, options: SimMimOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__()
        self.masking = MaskTokens(options.mask_ratio, options.mask_patch_size, student)
        self.regression = Regression(options, student)
        self.student_taps = self.regression.taps
        self.teacher_taps = ()

    def recall(self, kept: dict[str, Keepsake]) -> None:
        self.masking.recall(kept)

    def keepsakes(self) -> dict[str, Keepsake]:
        """The mask token."""
        return self.masking.keepsakes()

    def prepare(self, batch: Batch) -> Batch:
        """Draw each sample's visible patches from its view seed; the others are replaced."""
        return self.masking(batch)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """The regression loss; its part is "pixel"."""
        del teacher
        loss = self.regression(student, batch)
        return Losses(total=loss, parts={"pixel": loss.detach()})
