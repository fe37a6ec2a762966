"""Relation distillation: QK and VV relations of one teacher block to the student's last block.

TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, arXiv 2301.01296.
What we do differently: the head count comes from the teacher, not from a table, so any pair of
networks works; the loss uses log-softmax, so no probability can underflow. Register and
distillation tokens are left out on both sides, and the CLS token where only one side has it:
relations are then over the tokens that both networks have.
"""

from torch import Tensor

from limbeck.errors import UserError
from limbeck.methods.method import Method
from limbeck.methods.options import RelationOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.relations import relation_loss
from limbeck.records import Batch, Features, Losses, Tap, TapKind


class Relation(Method):
    """L = L_QK + L_VV (weights 1:1), each as in :func:`limbeck.ops.relations.relation_loss`.

    The student's block is its last one, re-split into the teacher's head count (the adaptive
    block): no weight changes shape. Only its norm1 and qkv, and the blocks before, get gradients.
    """

    Options = RelationOptions

    def __init__(
        self, options: RelationOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__()
        if teacher is None:
            raise UserError("Relation distillation needs a teacher; name one with --teacher.")
        block = options.teacher_block
        if not -teacher.depth <= block < teacher.depth:
            raise UserError(
                f"The teacher has {teacher.depth} blocks (0 to {teacher.depth - 1}, or -1 for the "
                f"last); there is no block {block}: change relation.teacher_block."
            )
        num_heads = teacher.num_heads[block]
        kinds: tuple[TapKind, ...] = ("queries", "keys", "values")
        self.student_taps = tuple(Tap(kind, -1, num_heads) for kind in kinds)
        self.teacher_taps = tuple(Tap(kind, block, num_heads) for kind in kinds)
        self.keeps_cls = student.has_cls_token and teacher.has_cls_token

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Losses:
        """QK and VV losses; the parts are "qk" and "vv"."""
        del batch  # relations need nothing but features
        assert teacher is not None
        student_q, student_k, student_v = self._shared_tokens(student, self.student_taps)
        teacher_q, teacher_k, teacher_v = self._shared_tokens(teacher, self.teacher_taps)
        qk = relation_loss(student_q, student_k, teacher_q, teacher_k)
        vv = relation_loss(student_v, student_v, teacher_v, teacher_v)
        return Losses(total=qk + vv, parts={"qk": qk.detach(), "vv": vv.detach()})

    def _shared_tokens(self, features: Features, taps: tuple[Tap, ...]) -> list[Tensor]:
        """The taps without the prefix tokens that only one network has, (B, nh, N, hd) each."""
        prefix = features.num_prefix_tokens
        keeps = int(self.keeps_cls)
        if prefix == keeps:
            return [features.taps[tap] for tap in taps]
        ids = [0] * keeps + list(range(prefix, features.taps[taps[0]].shape[2]))
        return [features.taps[tap][:, :, ids] for tap in taps]
