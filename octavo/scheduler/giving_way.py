"""Giving way: which running sequences are preempted so that a request of a better priority need not wait for them.

    running   a0  b0  c2  d2  e3      waiting   f1, which needs two seats:  e and d give way, c goes on
                                                g2                          waits: nobody is worse but e

Only a worse priority gives way, not who merely came later. It is the worst who do, as few as it takes, and nobody does
if all of them together would not be enough; so no one is preempted in vain, or comes back before the better one runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Listlike
from dataclasses import dataclass

from octavo.cache.block_pool import PrefixMatch
from octavo.cache.blocks import BlockId
from octavo.cache.kv_cache import KVCache
from octavo.request import Sequence
from octavo.scheduler.roster import num_seats


@dataclass(frozen=True, slots=True)
class Lack:
    """What a waiting sequence needs beyond what is free. blocks: to start. growth: blocks for it and for everybody who
    is no worse to grow into: they need not be free at once, but those who hold them must be worse."""

    seats: int
    blocks: int
    growth: int


def who_gives_way(lack: Lack, worse: Listlike[Sequence], cache: KVCache, match: PrefixMatch) -> list[Sequence] | None:
    """The last of `worse`, the worst first, that a sequence which has found `match` needs to leave. None: not even all
    of them would be enough."""
    if lack.seats <= 0 and lack.blocks <= 0 and lack.blocks + lack.growth <= 0:
        return []
    if sum(map(num_seats, worse)) < lack.seats or sum(map(cache.num_blocks_of, worse)) < lack.blocks + lack.growth:
        return None
    held = _Held(cache, match)
    num_leaving = num_left = 0
    for sequence in reversed(worse):
        if num_left < lack.seats or held.num_freed < lack.blocks:
            num_leaving += 1
        num_left += num_seats(sequence)
        held.let_go(sequence)
    if num_left < lack.seats or held.num_freed < lack.blocks + lack.growth:
        return None
    return list(reversed(worse))[:num_leaving]


class _Held:
    """Counts the blocks that nobody would have any more, but for those that the starting sequence has found."""

    def __init__(self, cache: KVCache, match: PrefixMatch) -> None:
        self._cache = cache
        self._found = {block_id for table in match.block_ids for block_id in table}
        self._num_let_go: Counter[BlockId] = Counter()
        self.num_freed = 0

    def let_go(self, sequence: Sequence) -> None:
        for block_id in self._cache.blocks_of(sequence):
            self._num_let_go[block_id] += 1
            is_last = self._num_let_go[block_id] == self._cache.pool.ref_counts[block_id]
            self.num_freed += is_last and block_id not in self._found
