"""What goes wrong and what to do about it: every error a user can cause is one clear sentence."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input. The message names the culprit and the remedy; the command line exits with 2."""

    exit_code = 2


class RunError(UserError):
    """A run that had started can't go on (NaN, full disk, bad files); it exits with 1."""

    exit_code = 1


class OfRank(RunError):
    """What one of torchrun's processes has met, its ``cause``; one that ``speaks`` tells it."""

    def __init__(self, cause: BaseException, rank: int, *, speaks: bool) -> None:
        super().__init__(str(cause))
        self.cause, self.rank, self.speaks = cause, rank, speaks
        self.exit_code = getattr(cause, "exit_code", 1)


class NotFiniteError(RunError):
    """A network gives infinity or NaN; the loop adds the step, its losses and its samples."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The nearest of ``choices`` as a sentence to append (with a leading space), or ''."""
    pool = list(choices)
    near = get_close_matches(word, pool, n=1, cutoff=0.5)
    if not near:
        # A shortened or extended word ("dinov2") is nearer to a person than the edit distance says.
        near = [choice for choice in pool if word and word.lower() in choice.lower()][:1]
    return f" Did you mean '{near[0]}'?" if near else ""


def require_extra(module: str, extra: str, purpose: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(
        f"{purpose} needs the package '{module}', which is not installed; "
        f"run: pip install 'limbeck[{extra}]'."
    )
