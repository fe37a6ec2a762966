"""What a run will take: read off a tried step, and judged."""

import sys

from limbeck.engine.distributed import Ranks
from limbeck.recipes.look.forecast import _memory_in_use, bytes_said


def test_a_system_that_does_not_count_memory(monkeypatch):
    assert _memory_in_use(Ranks()) > 0
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows has no such module
    assert _memory_in_use(Ranks()) == 0


def test_bytes_in_words():
    assert [*map(bytes_said, (10, 2048, 3 * 2**20, 1.5 * 2**30))] == [
        "10 B", "2 KiB", "3 MiB", "1.5 GiB",
    ]  # fmt: skip
