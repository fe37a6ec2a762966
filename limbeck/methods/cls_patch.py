"""The output's CLS token and patches, by cosine and smooth L1, through projectors of two layers.

As AM-RADIO (arXiv 2312.06709) agglomerates foundation models: a summary and the patches, each
through a projector of its own. That the teacher's tokens are normed first, without affine weights,
is our choice, so that channels of large values do not decide.
"""

from torch import Tensor, nn

from limbeck.methods.comparison import Comparison
from limbeck.methods.options import ClsPatchOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.losses import cosine_error, smooth_l1_error, whiten
from limbeck.records import Tap

OUTPUT = Tap("output")


def summarised(tokens: Tensor, *, has_cls: bool) -> tuple[Tensor, Tensor]:
    """CLS token, or else the mean of patches (B, D), and the patches (B, L, D) of an output."""
    if has_cls:
        return tokens[:, 0], tokens[:, 1:]
    return tokens.mean(1), tokens


class ClsPatch(Comparison):
    """L = sum over CLS and patches of c (1 - cos(p, t)) + (1 - c) smooth L1(p, t).

    t = LayerNorm(z_teacher) without affine weights, p = projector(z_student), of two layers with
    GELU between; z is the output, c the share of the cosine. Where not both networks have a CLS
    token, the mean of the patches takes its place.
    """

    Options = ClsPatchOptions

    def __init__(
        self, options: ClsPatchOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__(options, student, teacher)
        self.options = options
        self.set_taps((OUTPUT,), (OUTPUT,))
        width, wanted = student.output_dim, self.teacher_facts.output_dim
        hidden = options.hidden_dim or wanted
        self.of_cls, self.of_patches = (
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, wanted))
            for _ in range(2)
        )

    def compare(self, student: dict[Tap, Tensor], teacher: dict[Tap, Tensor]) -> dict[str, Tensor]:
        """ "cls" and "patch", the latter times its weight."""
        own_cls, own = summarised(student[OUTPUT], has_cls=self.keeps_cls)
        cls, patches = summarised(teacher[OUTPUT], has_cls=self.keeps_cls)
        return {
            "cls": self._apart(self.of_cls(own_cls), cls),
            "patch": self.options.patch_weight * self._apart(self.of_patches(own), patches),
        }

    def _apart(self, own: Tensor, target: Tensor) -> Tensor:
        target, share = whiten(target.detach()), self.options.cosine_share
        errors = smooth_l1_error(own, target, self.options.beta)
        return share * cosine_error(own, target) + (1 - share) * errors
