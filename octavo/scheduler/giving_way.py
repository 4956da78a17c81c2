"""Giving way: running sequences are preempted so that a request of a better priority need not wait for them.

    running   a0  b0  c2  d2  e3      waiting   f1, which needs two seats:  e and d give way, c goes on
                                                g2                          waits: nobody is worse but e

Only sequences of a worse priority give way, not those that merely came later. The worst give way, as few as are needed,
and none if all together would not be enough. So none is preempted in vain, or comes back before the better one runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Listlike
from dataclasses import dataclass

from octavo.cache.block_pool import PrefixMatch
from octavo.cache.blocks import BlockId, live
from octavo.cache.kv_cache import KVCache
from octavo.request import Sequence, SequenceState
from octavo.scheduler.adapter_slots import AdapterSlots
from octavo.scheduler.continuing import Continuing, TokenBudget
from octavo.scheduler.places import Places
from octavo.scheduler.starting import Starting
from octavo.scheduler.step import PlanDraft


@dataclass(frozen=True, slots=True)
class Lack:
    """What a waiting sequence needs beyond what is free. blocks: to start. growth: blocks that it and all sequences
    that are not worse will grow into; they need not be free yet, but only worse sequences may hold them. slots: of
    which one must be free for its adapter; None: it needs none, or has one."""

    seats: int
    blocks: int
    growth: int
    slots: AdapterSlots | None = None

    @property
    def is_none(self) -> bool:
        return self.seats <= 0 and self.blocks <= 0 and self.blocks + self.growth <= 0 and self.slots is None


class GivingWay:
    """Used with priorities only, and while a request waits."""

    def __init__(
        self, places: Places, cache: KVCache, budget: TokenBudget, starting: Starting, continuing: Continuing
    ) -> None:
        self._places = places
        self._cache = cache
        self._budget = budget
        self._starting = starting
        self._continuing = continuing

    def start_better(self, draft: PlanDraft) -> int:
        """Start waiting sequences before worse running ones get their tokens -> how many of the running have theirs."""
        index = 0
        for better in self._places.waiting.line():
            priority = better.request.priority
            if not self._is_worse_running(priority):
                break
            index = self._continuing.continue_from(index, draft, priority)
            if draft.num_preempted or not self._budget.left:
                break
            if self._is_worse_running(priority):
                self._start_in_place_of_worse(better, draft)
        return index

    def _is_worse_running(self, priority: int) -> bool:
        running = self._places.running
        return bool(running) and running[-1].request.priority > priority

    def _start_in_place_of_worse(self, sequence: Sequence, draft: PlanDraft) -> None:
        """Start a waiting sequence, at the cost of running ones of a worse priority if need be; or leave it waiting."""
        cache, places, starting = self._cache, self._places, self._starting
        match, num_tokens = starting.first_step(sequence)
        if num_tokens == 0 or not starting.is_at_hand(sequence):
            return
        starting.growth.guess_len(sequence)
        worse = [one for one in places.running if one.request.priority > sequence.request.priority]
        others = places.running[: len(places.running) - len(worse)]
        growth = starting.growth.of_all(others, [one for one in places.forking if one in others]) + draft.joining_growth
        num_blocks = cache.num_blocks_to_start(sequence, match, self._budget.longest_share)
        lack = Lack(
            seats=sequence.num_seats - places.seats.num_free,
            blocks=num_blocks - cache.num_available_blocks,
            growth=cache.num_blocks_to_grow(growth + starting.growth.of(sequence)) if others or draft.joining else 0,
            slots=None if starting.has_slot(sequence) else places.seats.adapters,
        )
        leaving = _who_gives_way(lack, worse, cache, match)
        if leaving is None:
            return
        for one in leaving:
            if one.state is not SequenceState.RUNNING:
                continue  # it left with another beam of its request
            worst = places.preempt_worst("priority", sequence)
            assert worst is one, "the worst of the running go first"
            draft.num_gave_way += 1
            draft.growth = None
        starting.start(sequence, match, num_tokens, draft)


def _who_gives_way(lack: Lack, worse: Listlike[Sequence], cache: KVCache, match: PrefixMatch) -> list[Sequence] | None:
    """The last of `worse`, the worst first, that must leave for a sequence that has found `match`. None: not even all
    of them would be enough."""
    if lack.is_none:
        return []
    num_held = sum(cache.tables[one.sequence_id].num_blocks * len(cache.groups) for one in worse)  # at most
    if sum(one.num_seats for one in worse) < lack.seats or num_held < lack.blocks + lack.growth:
        return None
    held = _Held(cache, match)
    num_leaving = num_left = 0
    users = _SlotUsers(lack.slots)
    for sequence in reversed(worse):
        if num_left < lack.seats or held.num_freed < lack.blocks or not users.is_one_free:
            num_leaving += 1
        num_left += sequence.num_seats
        held.let_go(sequence)
        users.let_go(sequence)
    if num_left < lack.seats or held.num_freed < lack.blocks + lack.growth or not users.is_one_free:
        return None
    return list(reversed(worse))[:num_leaving]


class _SlotUsers:
    """Counts who lets go of slots of adapters, until one is free. slots: None: none need be free."""

    def __init__(self, slots: AdapterSlots | None) -> None:
        self._slots, self._num_let_go = slots, Counter[int]()
        self.is_one_free = slots is None

    def let_go(self, sequence: Sequence) -> None:
        if self._slots is not None and (slot := self._slots.slot_of(sequence)) >= 0:
            self._num_let_go[slot] += 1
            self.is_one_free = self.is_one_free or self._num_let_go[slot] == self._slots.uses[slot]


class _Held:
    """Counts the blocks that would be free, except those that the starting sequence has found."""

    def __init__(self, cache: KVCache, match: PrefixMatch) -> None:
        self._cache = cache
        self._found = {block_id for table in match.block_ids for block_id in table}
        self._num_let_go: Counter[BlockId] = Counter()
        self.num_freed = 0

    def let_go(self, sequence: Sequence) -> None:
        for block_id in live(self._cache.tables[sequence.sequence_id].block_ids):
            self._num_let_go[block_id] += 1
            is_last = self._num_let_go[block_id] == self._cache.pool.ref_counts[block_id]
            self.num_freed += is_last and block_id not in self._found
