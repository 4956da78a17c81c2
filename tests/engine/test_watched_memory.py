"""However many watch, an engine tells its memory about once a second."""

from __future__ import annotations

from octavo.cache.memory_now import MemoryNow
from octavo.engine.watched_memory import INTERVAL_S, WatchedMemory


class Core:
    """An engine whose memory grows whenever somebody looks."""

    num_looks = 0

    def memory_now(self) -> MemoryNow:
        self.num_looks += 1
        return MemoryNow(self.num_looks, 16, [], [], 0)


def test_answers_are_made_once_an_interval() -> None:
    core, now = Core(), [0.0]
    memory = WatchedMemory(core, lambda: now[0])  # type: ignore[arg-type]
    first = memory.answer()
    assert b'"num_blocks":1' in first
    now[0] = INTERVAL_S * 0.9
    assert memory.answer() == first
    now[0] = INTERVAL_S
    assert b'"num_blocks":2' in memory.answer()
    assert core.num_looks == 2
