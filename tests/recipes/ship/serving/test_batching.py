"""Images that come together are worked on together, and no failure is another's."""

import asyncio
import threading

import pytest

pytest.importorskip("fastapi")
from starlette.exceptions import HTTPException

from limbeck.recipes.ship.serving.batching import Batcher


def run(work, asked, **options):
    """What ``asked(batcher)`` gives while the batcher works, and the sizes of its batches."""
    sizes = []

    async def main():
        values = {"largest": 4, "window": 0.0, "capacity": 8} | options
        batcher = Batcher(work, seen=sizes.append, **values)
        task = asyncio.create_task(batcher.run())
        found = await asked(batcher)
        task.cancel()
        return found

    return asyncio.run(main()), sizes


def test_what_waits_goes_together():
    async def asked(batcher):
        return await asyncio.gather(*(batcher.ask(number) for number in range(6)))

    found, sizes = run(lambda items: [10 * each for each in items], asked)
    assert found == [0, 10, 20, 30, 40, 50] and sizes == [4, 2]


def test_the_first_waits_for_others():
    async def asked(batcher):
        first = asyncio.create_task(batcher.ask(1))
        await asyncio.sleep(0.01)
        return [await batcher.ask(2), await first]

    found, sizes = run(lambda items: items, asked, window=60.0, largest=2)
    assert found == [2, 1] and sizes == [2]


def test_an_error_is_of_its_own_image_or_of_the_batch():
    async def asked(batcher):
        return await asyncio.gather(batcher.ask(1), batcher.ask(0), return_exceptions=True)

    one, sizes = run(lambda items: [each or ValueError("bad") for each in items], asked)
    assert one[0] == 1 and isinstance(one[1], ValueError) and sizes == [2]
    both, _ = run(lambda items: [1 // each for each in items], asked)
    assert [type(each) for each in both] == [ZeroDivisionError] * 2


def test_more_than_may_wait_are_refused_and_who_has_gone_is_forgotten():
    begun, go_on = threading.Event(), threading.Event()

    def work(items):
        begun.set()
        assert go_on.wait(60)
        return items

    async def asked(batcher):
        waiting = [asyncio.create_task(batcher.ask(0))]
        await asyncio.to_thread(begun.wait)
        waiting += [asyncio.create_task(batcher.ask(number)) for number in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(HTTPException) as full:
            await batcher.ask(3)
        waiting[1].cancel()
        go_on.set()
        return full.value.status_code, await waiting[0], await waiting[2]

    assert run(work, asked, capacity=2, largest=1) == ((429, 0, 2), [1, 1])
