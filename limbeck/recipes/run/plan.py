"""What is special about a kind of training, see ``limbeck.recipes.run.train``."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks
from limbeck.engine.health import Health
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import Keepsake
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.recipes.run.images import Images
from limbeck.recipes.run.networks import OWNERS
from limbeck.recipes.run.options import TrainingOptions
from limbeck.recipes.run.probes import Probe
from limbeck.recipes.run.resolved import Identity, identity_of
from limbeck.records import Batch


@dataclass(frozen=True)
class Plan:
    """What a kind of training supplies; all of it is built, and nothing is on the disk yet.

    ``module(batch)`` gives Losses; it holds the ``student``, which is saved, under the name
    ``student`` or ``encoder``. ``stream(config, skipped, start_step, total_steps)`` iterates over
    this rank's micro-batches; the config is the plan's, perhaps with smaller batches.
    ``score(skipped)`` gives the probe of the loop.
    """

    verb: str
    config: TrainingOptions
    images: Images
    student: TimmEncoder
    module: nn.Module
    stream: Callable[[Any, SkippedLog, int, int], Iterator[Batch]]
    score: Callable[[SkippedLog], Probe | None]
    crop_ratio: float
    """How the finished student wants to be shown images."""
    teacher: EncoderFacts | None = None
    others: dict[str, Any] = field(default_factory=dict)
    """What identifies the run beside images, config and the student's start."""
    about: Callable[[], dict[str, Any]] = dict
    """What the student's record says of this kind of training, asked at the end."""
    keepsakes: Callable[[], dict[str, Keepsake]] = dict
    """What is kept beside the student."""
    untrained: Literal["keep", "reinit", "zero"] | None = None
    """What becomes of the student's parameters that the losses do not depend on, which are looked
    for and frozen first; None: there are none."""
    warning: str = ""
    """What is told before it begins, or goes on."""
    after_step: Callable[[int, int], None] | None = None
    """Called with the steps done and all; what a method wants of it is called by itself."""
    health: Health | None = None
    largest: Callable[[Any, SkippedLog, int, int], Iterator[Batch]] | None = None
    """As ``stream``, of the images that take most memory; None where all take as much."""
    measure: str = ""
    """The score that ``train.patience`` goes by; "": there is none."""

    def __post_init__(self) -> None:
        if self.student not in (getattr(self.module, name, None) for name in OWNERS):
            raise TypeError(f"The module of a plan holds its student as {' or '.join(OWNERS)}.")

    def identity(self, ranks: Ranks) -> Identity:
        """The resolved config of the run and its fingerprint: what ``open_run`` compares."""
        return identity_of(
            self.verb, self.config, self.student.facts, self.images, ranks, **self.others
        )
