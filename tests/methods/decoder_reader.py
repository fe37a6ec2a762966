"""A method that reads a teacher's decoder, as little as there can be of one."""

from dataclasses import replace
from typing import ClassVar

from torch import nn

from limbeck.config import options
from limbeck.methods.masking import DropPatches
from limbeck.methods.method import Method
from limbeck.methods.options import MethodOptions
from limbeck.models.mae import MaeDecoder
from limbeck.models.origins.kept_decoder import FEATURE_DECODER, keep_feature_decoder
from limbeck.ops.losses import feature_loss
from limbeck.records import Losses, Tap

OUTPUT = Tap("output")


@options
class DecoderReaderOptions(MethodOptions):
    """Its block, and whether it reads the encoder as well; ``keeps``: the decoder goes down."""

    reads_decoder: ClassVar[bool] = True

    block: int = 0
    encoder_too: bool = False
    keeps: bool = True


class DecoderReader(Method):
    """Smooth L1 of a decoder's tokens, projected, to those of the teacher's."""

    Options = DecoderReaderOptions

    def __init__(self, options, student, teacher):
        super().__init__()
        self.keeps = options.keeps
        self.masking = DropPatches(0.5, student)
        self.decoder = MaeDecoder(student.embed_dim, student.grid, None, 16, 1, 2, True)
        self.decoderfeature_pred = nn.Linear(16, teacher.decoder_dim)
        self.target = Tap("decoder_tokens", options.block)
        self.student_taps, self.teacher_taps = (OUTPUT,), (self.target,)
        if options.encoder_too:
            self.teacher_taps += (OUTPUT,)

    def prepare(self, batch):
        masked = self.masking(batch)
        return replace(masked, teacher_ids_keep=masked.ids_keep)

    def shown_to_teacher(self):
        return self.masking.shown

    def keepsakes(self):
        projections = {"decoderfeature_pred": self.decoderfeature_pred}
        kept = keep_feature_decoder(self.decoder, projections)
        return {FEATURE_DECODER: kept} if self.keeps else {}

    def forward(self, student, teacher, batch):
        decoded = self.decoder.decode(student.taps[OUTPUT], batch.ids_keep)
        said = self.decoderfeature_pred(decoded)
        loss = feature_loss(said, teacher.taps[self.target], 2.0)
        return Losses(loss, {"decoder": loss.detach()})
