"""AdapterShelf: which adapters the workers have in their host's memory, from where a slot is filled at once.

    wanted ──begin──▶ being read, on a thread of each worker ──end──▶ kept ──▶ a slot
                          while steps go on                             └──▶ dropped for another one

A request waits apart from the queue until its adapter is kept: nobody waits behind it. Where all places are taken, an
adapter goes that no request waits for; else the one whose first request comes last, if that is later than the one that
wants the place. So the first in line always gets its adapter.
"""

from __future__ import annotations

from collections.abc import Mapping

from octavo.lora_request import LoadedAdapter
from octavo.messages import AdapterRead

Place = tuple[int, ...]  # in the line of those who wait


class AdapterShelf:
    """size: adapters that each worker keeps. is_busy: some are wanted, or being read."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: dict[int, None] = {}  # by key, the last used last
        self._wanted: dict[int, LoadedAdapter] = {}
        self._read: set[int] = set()
        self._failed: tuple[int, ...] = ()  # which some worker may have read all the same

    @property
    def is_busy(self) -> bool:
        return bool(self._wanted or self._read)

    def has(self, key: int) -> bool:
        return key in self._kept

    def want(self, adapter: LoadedAdapter) -> None:
        if adapter.key not in self._read:
            self._wanted[adapter.key] = adapter

    def use(self, key: int) -> None:
        """A slot is filled with it."""
        del self._kept[key]
        self._kept[key] = None

    def begin(self, waiting: Mapping[int, Place]) -> list[AdapterRead]:
        """What workers shall read now. waiting: by the keys of adapters, where the first request that waits for each
        stands."""
        reads = []
        for key in sorted(self._wanted, key=lambda key: waiting.get(key, (0,))):
            adapter = self._wanted[key]
            if key not in waiting:  # nobody does any more
                del self._wanted[key]
                continue
            dropped = self._make_room(waiting, waiting[key])
            if dropped is None:
                break
            del self._wanted[key]
            self._read.add(key)
            reads.append(AdapterRead(key, adapter.path, adapter.digest, self._failed + dropped))
            self._failed = ()
        return reads

    def end(self, key: int, *, is_kept: bool) -> None:
        """Workers have read it, or could not."""
        self._read.remove(key)
        if is_kept:
            self._kept[key] = None
        else:
            self._failed += (key,)

    def _make_room(self, waiting: Mapping[int, Place], place: Place) -> tuple[int, ...] | None:
        """The keys of what must go for one more; None: nothing may."""
        if len(self._kept) + len(self._read) < self._size:
            return ()
        idle = next((key for key in self._kept if key not in waiting), None)
        if idle is None:
            idle = max((key for key in self._kept if waiting[key] > place), key=waiting.__getitem__, default=None)
        if idle is None:
            return None
        del self._kept[idle]
        return (idle,)
