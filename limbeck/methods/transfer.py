"""What all arms of the TinyMIM study share: one target block of each network.

TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, arXiv 2301.01296. The mask and the
reconstruction are its section on masked input; the weight between the losses, and what the teacher
then sees, are not in the paper and are options here.
"""

from limbeck.errors import UserError
from limbeck.methods.comparison import Comparison
from limbeck.methods.options import TransferOptions
from limbeck.models.encoder import EncoderFacts


class Transfer(Comparison):
    """A comparison of ``student_block`` to ``teacher_block``, both of which exist."""

    def __init__(
        self, options: TransferOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__(options, student, teacher)
        _check_block(options.teacher_block, self.teacher_facts, "teacher")
        _check_block(options.student_block, student, "student")


def _check_block(block: int, facts: EncoderFacts, role: str) -> None:
    if not -facts.depth <= block < facts.depth:
        raise UserError(
            f"The {role} has {facts.depth} blocks (0 to {facts.depth - 1}, or -1 for the last); "
            f"there is no block {block}: change {role}_block."
        )
