"""How far a verb is: on a terminal a bar with the time left, elsewhere a line now and then."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

log = logging.getLogger("limbeck")

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress(
    total: int, what: str = "images", console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """A function to be told how many more are done; ``console`` is standard error if None."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        columns = (*Progress.get_default_columns()[:-1], "{task.completed} of {task.total}")
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda number: bar.advance(task, number)
        return
    done, started = 0, time.monotonic()
    last = started

    def advance(number: int) -> None:
        nonlocal done, last
        done, now = done + number, time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            left = timedelta(seconds=round((now - started) / done * max(0, total - done)))
            log.info("%s of %s %s, ETA %s", f"{done:,}", f"{total:,}", what, left)
            last = now

    yield advance
