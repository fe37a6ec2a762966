"""Images that wait in a bounded queue, and one thread that works on as many as have come."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from starlette.exceptions import HTTPException

Work = Callable[[Sequence[Any]], Sequence[Any]]
"""What is asked to as many answers; an answer that is an exception is raised for who asked."""


class Batcher:
    """Gathers what is asked at about the same time: the first waits ``window`` seconds for others,
    of which ``largest`` go together. ``seen`` is told the size of each batch."""

    def __init__(
        self, work: Work, *, largest: int, window: float, capacity: int, seen: Callable[[int], None]
    ) -> None:
        self.work, self.largest, self.window, self.seen = work, largest, window, seen
        self.queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue(capacity)
        self.thread = ThreadPoolExecutor(1, "limbeck-network")

    async def ask(self, item: Any) -> Any:
        """The answer; raises what the work raises, and HTTPException where too many wait."""
        future = asyncio.get_running_loop().create_future()
        try:
            self.queue.put_nowait((item, future))
        except asyncio.QueueFull:
            raise HTTPException(429, "Too many requests wait; try again soon.") from None
        return await future

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            batch = [each for each in await self._gather() if not each[1].done()]
            if not (items := [item for item, _ in batch]):
                continue
            self.seen(len(items))
            answers: Sequence[Any]
            try:
                work = asyncio.get_running_loop().run_in_executor(self.thread, self.work, items)
                answers = await work
            except Exception as error:
                answers = [error] * len(items)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # who asked has gone
                    continue
                is_error = isinstance(answer, Exception)
                (future.set_exception if is_error else future.set_result)(answer)

    async def _gather(self) -> list[tuple[Any, asyncio.Future[Any]]]:
        batch = [await self.queue.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self.window):
                while len(batch) < self.largest:
                    batch.append(await self.queue.get())
        return batch
