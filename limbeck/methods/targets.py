"""What can be stored of a teacher, and the teacher that is made of what was stored.

Fast pre-training distillation: TinyViT, arXiv 2207.10666. A new kind of target is a class in its
own file and one line in ``TARGETS``. What it stores of a view is a dictionary of arrays, of which
the store knows only names, shapes and types.
"""

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.data.options import StoreOptions
from limbeck.data.target_store import ArraySpec, Manifest
from limbeck.data.target_store.manifest import damage
from limbeck.documents import fit
from limbeck.errors import UserError
from limbeck.methods.method import Method
from limbeck.methods.teacher import DTYPES, Precision, Teacher, autocast
from limbeck.models.encoder import EncoderFacts
from limbeck.records import Batch, Features, Tap

TARGETS: dict[str, str] = {
    "probs": "limbeck.methods.soft_targets:ProbTargets",
    "tokens": "limbeck.methods.token_targets:TokenTargets",
}
"""Kind -> "module:Class"."""

OPTIONS_OF_KINDS = {"top_k", "token_dtype"}
"""Those of ``StoreOptions`` that not every kind heeds."""


class Targets(ABC):
    """One kind of target: how a teacher's answer is encoded, and read again."""

    kind: ClassVar[str]
    options: ClassVar[tuple[str, ...]]
    """Those of ``OPTIONS_OF_KINDS`` that it heeds."""
    usual_distance: ClassVar[dict[Precision, float]]
    """Precision of the teacher -> the ``distance`` that rounding may explain: that of what is
    stored, and of another batch, library or machine."""

    @classmethod
    @abstractmethod
    def plan(cls, options: StoreOptions, method: Method, teacher: Teacher) -> "Targets":
        """What to store of ``teacher`` so that ``method`` can be trained from it.

        Raises UserError where it can't be.
        """

    @classmethod
    @abstractmethod
    def from_store(
        cls, params: dict[str, Any], teacher: EncoderFacts, weights: dict[str, Tensor]
    ) -> "Targets":
        """The same again from what ``params`` and ``weights`` said of it."""

    @property
    @abstractmethod
    def params(self) -> dict[str, Any]:
        """Plain data from which, with ``weights``, it is made again."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """Weights of the teacher that reading needs, kept in the store once; usually none."""
        return {}

    @property
    @abstractmethod
    def arrays(self) -> dict[str, ArraySpec]:
        """What the record of one view has."""

    @property
    @abstractmethod
    def taps(self) -> tuple[Tap, ...]:
        """What a live teacher is asked for when its answers are stored."""

    @abstractmethod
    def encode(self, features: Features) -> dict[str, Tensor]:
        """The arrays (B, *shape) of a live teacher's answer to ``taps``."""

    @abstractmethod
    def decode(self, arrays: dict[str, Tensor], taps: tuple[Tap, ...]) -> Features:
        """What the teacher said: ``taps``, or ``Features.soft_labels``, from arrays (B, *shape)."""

    @abstractmethod
    def check(self, method: Method) -> None:
        """Raise UserError unless ``method`` can be trained from these targets."""

    def to(self, device: torch.device) -> "Targets":
        """Move what decoding needs to a device; returns itself."""
        return self

    @abstractmethod
    def distance(self, stored: dict[str, Tensor], fresh: dict[str, Tensor]) -> Tensor:
        """How far two encoded answers to the same views are apart (B,) float32; 0 is the same."""


class StoredTeacher:
    """What a store holds, in the place of the teacher who said it; see ``Teacher``."""

    def __init__(
        self, manifest: Manifest, weights: dict[str, Tensor], device: torch.device
    ) -> None:
        self.facts = fit_said(manifest.teacher.get("facts", {}), EncoderFacts)
        self.precision: Precision = manifest.teacher.get("precision") or _precision_of(weights)
        self.device = device
        kind = targets_class(manifest.kind)
        try:
            self.targets = kind.from_store(manifest.params, self.facts, weights)
            arrays = self.targets.arrays
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            raise not_possible(str(error)) from error
        for name, spec in arrays.items():
            if manifest.arrays.get(name) != spec:
                raise not_possible(f"its records have no {name} of {spec.shape} {spec.dtype}")
        self.targets = self.targets.to(device)

    @torch.no_grad()
    def answer(self, batch: Batch, taps: tuple[Tap, ...]) -> Features:
        """The taps (or soft labels) that were stored for the batch's views."""
        if batch.targets is None:
            raise UserError("The batch brings no stored targets; give its loader the store.")
        with autocast(self.device, self.precision):
            return self.targets.decode(batch.targets, taps)

    def check(self, method: Method) -> None:
        """Raise UserError unless ``method`` can be trained from what is stored."""
        self.targets.check(method)


def fit_said(values: dict[str, Any], kind: Any) -> Any:
    """What a store says of its teacher or targets as ``kind``; raises UserError."""
    try:
        return fit(values, kind, "it")
    except UserError as error:
        raise not_possible(damage(error)) from error


def not_possible(reason: str) -> UserError:
    """The error for a store whose manifest is as it was written, and wrong."""
    return UserError(
        f"What the store says of its teacher and targets can't be ({reason.rstrip('.')}); write "
        "it again in another place."
    )


def _precision_of(weights: dict[str, Tensor]) -> Precision:
    """That in which a teacher computes whose matrices are of this type."""
    types = {value.dtype for value in weights.values()}
    return next((name for name in ("bf16", "fp16") if DTYPES[name] in types), "fp32")


def plan_targets(options: StoreOptions, method: Method, teacher: Teacher) -> Targets:
    """What to store of a teacher for a method. Raises UserError where nothing can be.

    Also for options that are of another kind of target.
    """
    if any(module.training for module in teacher.encoder.modules()):
        raise UserError(
            "A teacher with drop path says something else each time, so that its answers can't be "
            "stored; leave teacher.drop_path_rate out."
        )
    kind = targets_class("probs" if method.takes_soft_labels else "tokens")
    default = StoreOptions()
    for name in OPTIONS_OF_KINDS - set(kind.options):
        if getattr(options, name) != getattr(default, name):
            raise UserError(
                f"store.{name} has no effect for {type(method).__name__}, for which {kind.kind} "
                "are stored; leave it out."
            )
    return kind.plan(options, method, teacher)


def targets_class(kind: str) -> type[Targets]:
    """The class of a kind. Raises UserError for one that this version does not know."""
    if kind not in TARGETS:
        raise UserError(
            f"The store holds targets of kind '{kind}', and this version knows "
            f"{', '.join(TARGETS)}; update limbeck."
        )
    module, _, name = TARGETS[kind].partition(":")
    return getattr(import_module(module), name)
