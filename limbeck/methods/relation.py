"""Relation distillation: relations between the tokens of one teacher block to a student's block.

TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, arXiv 2301.01296, its default and
the arms of its study of relations. What we do differently: the head count comes from the teacher,
not from a table, so any pair of networks works; the loss uses log-softmax, so no probability can
underflow; how relations without softmax are compared is not in the paper, and is our choice.
"""

from torch import Tensor

from limbeck.methods.options import RelationOptions
from limbeck.methods.transfer import Transfer
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.relations import relation_loss
from limbeck.records import Tap, TapKind

KINDS: dict[str, TapKind] = {"q": "queries", "k": "keys", "v": "values"}


class Relation(Transfer):
    """L = sum over the relations AB of L_AB (weights 1:1), each an ``ops.relations.relation_loss``.

    R^AB_m = softmax_row(A_m B_m^T / sqrt(hd)) for each head m, with A and B of queries, keys and
    values: QK + VV by default. The student's block is re-split into the teacher's head count (the
    adaptive block): no weight changes shape. Only its norm1 and qkv, and the blocks before, get
    gradients.
    """

    Options = RelationOptions

    def __init__(
        self, options: RelationOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__(options, student, teacher)
        self.options = options
        num_heads = self.teacher_facts.num_heads[options.teacher_block]
        letters = [letter for letter in KINDS if any(letter in ab for ab in options.relations)]
        self.taps = {
            letter: (
                Tap(KINDS[letter], options.student_block, num_heads),
                Tap(KINDS[letter], options.teacher_block, num_heads),
            )
            for letter in letters
        }
        pairs = self.taps.values()
        self.set_taps(tuple(own for own, _ in pairs), tuple(theirs for _, theirs in pairs))

    def compare(self, student: dict[Tap, Tensor], teacher: dict[Tap, Tensor]) -> dict[str, Tensor]:
        """One loss per relation, named "qk", "vv" and so on."""
        losses: dict[str, Tensor] = {}
        for relation in self.options.relations:
            (student_a, teacher_a), (student_b, teacher_b) = (self.taps[x] for x in relation)
            losses[relation] = relation_loss(
                student[student_a],
                student[student_b],
                teacher[teacher_a],
                teacher[teacher_b],
                softmax=self.options.softmax,
                temperature=self.options.temperature,
            )
        return losses
