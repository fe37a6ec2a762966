"""What a hostile input is: a command line over files that were made to go wrong."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Hostile:
    """One input of the campaign: ``words`` for the command line after ``limbeck``.

    ``exits`` are the codes that are right, ``says`` a part of what must be said (any case) if not
    empty, ``seconds`` the time after which it counts as hanging.
    """

    name: str
    words: Sequence[str]
    exits: tuple[int, ...] = (0, 1, 2)
    says: str = ""
    seconds: float = 60.0
