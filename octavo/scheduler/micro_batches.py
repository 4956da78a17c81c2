"""MicroBatches: what the running sequences of a pipeline compute in a step.

    steps in flight        1       2       1       2              two stages: while a step is in the second,
    sequences             a b     c d     a b     c d             the next one is in the first

A sequence whose token is being drawn in another step waits for it: the first stage needs the token. So that every step
finds some that do not wait, a step draws for no more than its part of the running sequences. Chunks inside a prompt
draw nothing and wait for nothing.
"""

from __future__ import annotations

import math

from octavo.cache.kv_cache import KVCache
from octavo.scheduler.continuing import Continuing, TokenBudget
from octavo.scheduler.places import Places
from octavo.scheduler.step import PlanDraft


class MicroBatches(Continuing):
    """num_stages: the most steps in flight."""

    def __init__(self, places: Places, cache: KVCache, budget: TokenBudget, num_stages: int) -> None:
        super().__init__(places, cache, budget)
        self._num_stages = num_stages

    def continue_from(self, index: int, draft: PlanDraft, priority: float = math.inf) -> int:
        running, searching = self._places.running, self._places.searching
        num_drawing, most = sum(map(bool, draft.num_logits)), -(-len(running) // self._num_stages)
        while index < len(running) and self._budget.left and running[index].request.priority <= priority:
            sequence = running[index]
            if num_drawing >= most:
                break
            num_before = len(draft.rows)
            if sequence.request.request_id in searching:
                if not self.continue_beams(sequence.request, draft):
                    break
                index += len(sequence.request.sequences)
                num_drawing += len(draft.rows) - num_before
                continue
            if not sequence.num_pending and not self.continue_one(sequence, draft):
                break
            num_drawing += sum(map(bool, draft.num_logits[num_before:]))
            index += 1
        return index
