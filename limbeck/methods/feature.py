"""Feature distillation: a block's features through a linear projection.

TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, arXiv 2301.01296, its study of
features: block output, attention and FFN before and after the residual add, queries, keys and
values. That Q, K and V features are three losses with weights 1:1:1 is our reading.
"""

from torch import Tensor, nn

from limbeck.methods.options import FeatureOptions
from limbeck.methods.transfer import Transfer
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.losses import feature_loss
from limbeck.records import Tap, TapKind


class Feature(Transfer):
    """L = sum over targets of smooth L1 (beta 2) of proj(F_student) to LayerNorm(F_teacher).

    The norm has no affine weights and is on the teacher's side alone ("whitening"); proj is linear,
    D_student -> D_teacher, and vanishes with the method. Mean over batch, tokens and channels.
    """

    Options = FeatureOptions

    def __init__(
        self, options: FeatureOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__(options, student, teacher)
        self.beta = options.beta
        kinds: tuple[TapKind, ...] = (
            ("queries", "keys", "values") if options.target == "qkv" else (options.target,)
        )
        self.set_taps(
            tuple(Tap(kind, options.student_block) for kind in kinds),
            tuple(Tap(kind, options.teacher_block) for kind in kinds),
        )
        widths = student.embed_dim, self.teacher_facts.embed_dim
        if options.target == "output":
            widths = student.output_dim, self.teacher_facts.output_dim
        self.proj = nn.ModuleList(nn.Linear(*widths) for _ in kinds)

    def compare(self, student: dict[Tap, Tensor], teacher: dict[Tap, Tensor]) -> dict[str, Tensor]:
        """One loss per target, by the name of its tap."""
        triples = zip(self.compared, self.teacher_taps, self.proj, strict=True)
        return {
            theirs.kind: feature_loss(
                proj(_join_heads(student[own])), _join_heads(teacher[theirs]), self.beta
            )
            for own, theirs, proj in triples
        }


def _join_heads(value: Tensor) -> Tensor:
    """Heads side by side in the channels, as the projection made them: (B, N, D)."""
    return value.transpose(1, 2).flatten(2) if value.ndim == 4 else value
