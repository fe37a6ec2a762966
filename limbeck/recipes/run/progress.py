"""How far a verb is."""

from collections.abc import Generator, Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def tracked(
    items: Iterable[T], total: float, what: str, console: Console | None = None
) -> Generator[T, None, None]:
    """The items, with a bar and the time left on a terminal (standard error), silent elsewhere."""
    console = console or Console(stderr=True)
    hidden = not console.is_terminal
    yield from track(items, what, total, console=console, transient=True, disable=hidden)
