"""Attention-score distillation beside a reconstruction: D-MAE and, decoupled, D2-MAE.

A Closer Look at Self-Supervised Lightweight Vision Transformers, arXiv 2205.14443, and An
Experimental Study on Exploring Strong Lightweight Vision Transformers via Masked Image Modeling
Pre-Training, arXiv 2404.12210. The papers speak of attention maps; the released code compares the
scores before the softmax, and so do we unless told otherwise. Its other targets (hidden states) and
its mixer of identity are options; how maps are mixed (their scores are) is our choice.
"""

from dataclasses import replace

from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.methods.comparison import Comparison
from limbeck.methods.options import AttentionMapOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.models.extra_block import QueryKeyBlock
from limbeck.ops.losses import divergence, squared_error
from limbeck.ops.scores import mix_heads
from limbeck.records import Tap


class AttentionMap(Comparison):
    """L = weight * sum over block pairs of mean (W S_student - S_teacher)^2 + reconstruction.

    S = Q K^T / sqrt(hd) of each head, (B, nh, N, N); mean over batch, teacher's heads and both
    token axes, CLS token included. W, one per pair, maps the student's heads to the teacher's (its
    start is that of a linear layer, not the identity). Both sides see the same patches.

    ``decoupled``: the student's scores are those of a throw-away block after its last, and the
    reconstruction leaves before it, so that the last blocks learn from the teacher alone. Block, W
    and decoder are owned here and vanish from the finished student.
    """

    Options = AttentionMapOptions

    def __init__(
        self, options: AttentionMapOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__(_leaving_early(options, student), student, teacher)
        self.target, self.weight_of_teacher = options.target, options.weight
        self.extra_block = QueryKeyBlock(student) if options.decoupled else None
        self.pairs: list[tuple[Tap, Tap]] = []
        self.mixers = nn.ModuleList()
        for of_student, of_teacher in options.block_pairs:
            own = self._tap(of_student, student, "student")
            theirs = self._tap(of_teacher, self.teacher_facts, "teacher")
            _check_same_grid(own, student, theirs, self.teacher_facts)
            widths = self._width(own, student), self._width(theirs, self.teacher_facts)
            self.mixers.append(_build_mixer(options.mixer, *widths))
            # After the last block, whose own scores are not wanted, comes the throw-away one.
            self.pairs.append((Tap("tokens", -1) if options.decoupled else own, theirs))
        student_taps, teacher_taps = zip(*self.pairs, strict=True)
        self.set_taps(student_taps, teacher_taps)

    def compare(self, student: dict[Tap, Tensor], teacher: dict[Tap, Tensor]) -> dict[str, Tensor]:
        """One loss per pair, weighted: "scores", of several "scores_0", "scores_1" and so on."""
        losses: dict[str, Tensor] = {}
        for number, ((own, theirs), mixer) in enumerate(zip(self.pairs, self.mixers, strict=True)):
            name = self.target if len(self.pairs) == 1 else f"{self.target}_{number}"
            losses[name] = self.weight_of_teacher * self._compare(
                student[own], teacher[theirs].detach(), mixer
            )
        return losses

    def _compare(self, student: Tensor, teacher: Tensor, mixer: nn.Module) -> Tensor:
        if self.target == "tokens":
            return squared_error(mixer(student), teacher)
        scores = student if self.extra_block is None else self.extra_block(student)
        if isinstance(mixer, nn.Linear):
            scores = mix_heads(scores, mixer.weight)
        return (squared_error if self.target == "scores" else divergence)(scores, teacher)

    def _tap(self, index: int, facts: EncoderFacts, role: str) -> Tap:
        last = facts.depth - (self.target != "tokens")
        if not -last - 1 <= index <= last:
            raise UserError(
                f"The {role} has {facts.depth} blocks, so {self.target} of 0 to {last} (or -1 for "
                f"the last), not of {index}: change block_pairs."
            )
        if self.target != "tokens":
            return Tap("scores", index % facts.depth)
        place = index % (last + 1)
        return Tap("output") if place == last else Tap("attention_input", place)

    def _width(self, tap: Tap, facts: EncoderFacts) -> int:
        return facts.num_heads[tap.block] if tap.kind == "scores" else facts.tap_dim(tap)


def _leaving_early(options: AttentionMapOptions, student: EncoderFacts) -> AttentionMapOptions:
    """D2-MAE's reconstruction leaves where it is told, or after two thirds of a plain student.

    Raises UserError for a student of stages that is not told.
    """
    name = "reconstruction" if options.masking == "drop" else "regression"
    early = getattr(options, name)
    if not options.decoupled or early.weight == 0 or early.before_block is not None:
        return options
    if len(set(student.block_strides)) > 1:
        raise UserError(
            f"attention_map.decoupled of a student of stages needs the block before which its "
            f"reconstruction leaves: set attention_map.{name}.before_block, from 1 to "
            f"{student.depth - 1}."
        )
    return replace(options, **{name: replace(early, before_block=2 * student.depth // 3)})


def _build_mixer(kind: str, of_student: int, of_teacher: int) -> nn.Module:
    if kind == "learned":
        return nn.Linear(of_student, of_teacher, bias=False)  # starts uniform in +-1/sqrt(inputs)
    if of_student != of_teacher:
        raise UserError(
            f"mixer identity needs as many heads (or channels) on both sides, not {of_student} and "
            f"{of_teacher}; choose mixer learned."
        )
    return nn.Identity()


def _check_same_grid(own: Tap, student: EncoderFacts, theirs: Tap, teacher: EncoderFacts) -> None:
    """Of a hierarchical network a block may have another grid than its output."""
    grids = [student.grid_of(student.tap_stride(own)), teacher.grid_of(teacher.tap_stride(theirs))]
    relative = [
        (rows / facts.grid[0], columns / facts.grid[1])
        for (rows, columns), facts in zip(grids, (student, teacher), strict=True)
    ]
    if relative[0] != relative[1]:
        raise UserError(
            f"Block {own.block} of the student has {grids[0][0]} x {grids[0][1]} tokens and block "
            f"{theirs.block} of the teacher {grids[1][0]} x {grids[1][1]}: change block_pairs."
        )
