"""What goes wrong and what to do about it: every error a user can cause is one clear sentence."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


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


class CutError(RunError):
    """What was given up is still worked on; the command's end does not wait for its threads."""


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


def own_place(error: BaseException) -> str | None:
    """Where a user's own code raised an error, such as "own.py, line 12, in forward".

    None where there is none between our code and what raised it.
    """
    import sysconfig
    import traceback

    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    ours = str(Path(__file__).parent)
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    others = tuple({sysconfig.get_path(name) for name in names})
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, each in enumerate(frames) if each.filename.startswith(ours)), 0)
    for frame in reversed(frames[first:]):
        if not frame.filename.startswith((ours, *others, "<")):
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return None


def explain(error: BaseException) -> str:
    """An error that is no UserError, in a sentence: its kind and what it says, and where if in a
    user's own code."""
    place = own_place(error)
    said = " ".join(str(error).split())
    return f"{place + ': ' if place else ''}{type(error).__name__}{': ' + said if said else ''}"


def require_extra(module: str, extra: str, purpose: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(
        f"{purpose} needs the package '{module}', which is not installed; "
        f"run: pip install 'limbeck[{extra}]'."
    )
