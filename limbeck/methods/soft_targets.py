"""Stored class probabilities: the K largest of each view, and their sum over the other classes.

TinyViT, arXiv 2207.10666. How many bytes they take is said in ``limbeck.ops.label_codes``.
"""

from typing import Any, ClassVar

from pydantic import StrictInt
from torch import Tensor
from typing_extensions import TypedDict

from limbeck.data.options import StoreOptions
from limbeck.data.target_store import ArraySpec
from limbeck.errors import NotFiniteError, UserError
from limbeck.methods.method import Method, check_classifies
from limbeck.methods.targets import Targets, fit_said, not_possible
from limbeck.methods.teacher import Precision, Teacher
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.label_codes import LabelCodec
from limbeck.ops.soft_labels import top_k, total_variation
from limbeck.records import Features, Tap

RECORDS = "records"
LOGITS = Tap("logits")
MANY_CLASSES = 1000
FEW_KEPT, MANY_KEPT = 10, 100  # the paper's, of 1,000 and of 21,841 classes


class _Params(TypedDict):
    top_k: StrictInt
    num_classes: StrictInt
    shown: dict[str, Any]


class ProbTargets(Targets):
    """The ``top_k`` largest class probabilities of a teacher with so many classes, as bytes.

    ``shown``: what of a view the teacher saw (``Method.shown_to_teacher``).
    """

    kind: ClassVar[str] = "probs"
    options: ClassVar[tuple[str, ...]] = ("top_k",)
    # Codes are 0.2 % apart. Of a ViT-Ti of random weights with logits of deviation 6 the largest
    # distance to fp32 was 0.007 in fp16 and 0.065 in bf16, the median 0.003 and 0.04.
    usual_distance: ClassVar[dict[Precision, float]] = {"fp32": 0.005, "fp16": 0.02, "bf16": 0.08}

    def __init__(self, top_k: int, teacher: EncoderFacts, shown: dict[str, Any]) -> None:
        self.codec = LabelCodec(top_k, teacher.num_classes)
        self.teacher = teacher
        self.shown = shown

    @classmethod
    def plan(cls, options: StoreOptions, method: Method, teacher: Teacher) -> "ProbTargets":
        """As many as the store's options say, or the method's. Raises UserError where they differ,
        and for a teacher without a classifier."""
        facts = teacher.facts
        check_classifies(facts)
        if options.top_k and method.top_k and options.top_k != method.top_k:
            raise UserError(
                f"store.top_k is {options.top_k} and the method's top_k {method.top_k}; leave one "
                "of the two out."
            )
        shown = method.shown_to_teacher()
        if shown is None:
            raise UserError(
                f"{type(method).__name__} does not say what it shows the teacher; give it a "
                "shown_to_teacher."
            )
        usual = MANY_KEPT if facts.num_classes > MANY_CLASSES else FEW_KEPT
        return cls(min(options.top_k or method.top_k or usual, facts.num_classes), facts, shown)

    @classmethod
    def from_store(
        cls, params: dict[str, Any], teacher: EncoderFacts, weights: dict[str, Tensor]
    ) -> "ProbTargets":
        """The same again from what ``params`` said."""
        del weights
        values: _Params = fit_said(params, _Params)
        if values["num_classes"] != teacher.num_classes:
            raise not_possible(
                f"its probabilities are of {values['num_classes']} classes and its teacher has "
                f"{teacher.num_classes}"
            )
        return cls(values["top_k"], teacher, values["shown"])

    @property
    def params(self) -> dict[str, Any]:
        """K, the number of classes, and what the teacher saw."""
        own = {"top_k": self.codec.top_k, "num_classes": self.codec.num_classes}
        return own | {"shown": self.shown}

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """The bytes of one view's label."""
        return {RECORDS: ArraySpec((self.codec.num_bytes,), "uint8")}

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The logits."""
        return (LOGITS,)

    def encode(self, features: Features) -> dict[str, Tensor]:
        """The records of a live teacher's logits. Raises NotFiniteError for infinite ones."""
        logits = features.taps[LOGITS]
        if not logits.isfinite().all():
            raise NotFiniteError(
                "The teacher's logits are not finite; set teacher.precision bf16 or fp32."
            )
        labels = top_k(logits, self.codec.top_k)
        return {RECORDS: self.codec.encode(labels)}

    def decode(self, arrays: dict[str, Tensor], taps: tuple[Tap, ...]) -> Features:
        """The soft labels; there is nothing else."""
        del taps
        labels = self.codec.decode(arrays[RECORDS])
        facts = self.teacher
        return Features(None, facts.num_prefix_tokens, facts.grid, soft_labels=labels)

    def distance(self, stored: dict[str, Tensor], fresh: dict[str, Tensor]) -> Tensor:
        """The total variation, half of sum |p - q|, 0..1."""
        first, second = (self.codec.decode(arrays[RECORDS]) for arrays in (stored, fresh))
        return total_variation(first, second)

    def check(self, method: Method) -> None:
        """Raise UserError unless ``method`` learns from class probabilities, of as many classes."""
        if not method.takes_soft_labels or set(method.teacher_taps) - {LOGITS}:
            raise UserError(
                f"The store holds class probabilities, from which {type(method).__name__} can't "
                "learn; choose --method sparse-logit, or store this method's targets."
            )
        if method.shown_to_teacher() != self.shown:
            raise UserError(
                f"{type(method).__name__} shows a teacher something else of a view than this one "
                "saw when its answers were stored; store targets for this method."
            )
        own, asked = self.codec.top_k, method.top_k
        if asked is not None and min(asked, self.codec.num_classes) != own:
            raise UserError(
                f"The store keeps {own} class probabilities of each view, not {asked}; leave "
                "top_k out."
            )
