"""Continuing: what the running compute in a step, the best of them first.

    known     tokens that are not computed yet: one for a decode, many for a prompt that came in chunks
    guesses   behind them, where somebody has made some (Sequence.spec_token_ids)

Who finds no block for its known tokens preempts the worst of the running, itself if need be, never a better one.
"""

from __future__ import annotations

import math

from octavo.cache.kv_cache import KVCache
from octavo.request import Sequence
from octavo.scheduler.budget import TokenBudget
from octavo.scheduler.draft import PlanDraft
from octavo.scheduler.places import Places
from octavo.scheduler.starting import Starting
from octavo.scheduler.updates import is_full, num_left_to_draw


class Continuing:
    """Owner of nothing: it asks the others what there is."""

    def __init__(
        self,
        places: Places,
        cache: KVCache,
        budget: TokenBudget,
        starting: Starting,
        *,
        max_model_len: int,
        has_priorities: bool,
    ) -> None:
        self._places = places
        self._cache = cache
        self._budget = budget
        self._starting = starting
        self._max_model_len = max_model_len
        self._has_priorities = has_priorities

    def continue_running(self, draft: PlanDraft) -> None:
        """Grant all running sequences their tokens, but for those that give way to better ones which wait."""
        index = 0
        if self._has_priorities:
            for better in self._places.waiting.line():
                priority = better.request.priority
                if not self._is_worse_running(priority):
                    break
                index = self._continue_from(index, draft, priority)
                if draft.num_preempted or not self._budget.left:
                    break
                if self._is_worse_running(priority):
                    self._starting.start_in_place_of_worse(better, draft)
        self._continue_from(index, draft)

    def _continue_from(self, index: int, draft: PlanDraft, priority: float = math.inf) -> int:
        """Grant running sequences their tokens, from this one on, as long as none has a worse priority -> the next."""
        running, budget = self._places.running, self._budget
        while index < len(running) and budget.left and running[index].request.priority <= priority:
            if not self.continue_one(running[index], draft):
                break
            index += 1
        return index

    def _is_worse_running(self, priority: int) -> bool:
        running = self._places.running
        return bool(running) and running[-1].request.priority > priority

    def continue_one(self, sequence: Sequence, draft: PlanDraft) -> bool:
        """Grant a running sequence its next tokens, if it has any. False: it was preempted."""
        budget = self._budget
        num_computed = sequence.num_computed_tokens
        num_pending = sequence.num_pending
        num_known = len(sequence.token_ids) + num_pending - num_computed
        if num_pending and is_full(sequence, num_computed + num_known, self._max_model_len):
            return True  # the token being drawn is its last
        if num_pending and sequence.spec_token_ids:
            return True  # nobody knows yet where it goes on
        num_tokens = 1 if num_known == 1 else budget.share(num_known)
        if num_tokens == 0:
            return True  # nothing but its prompt was wanted
        has_room = num_computed + num_tokens <= self._cache.tables[sequence.sequence_id].room
        if not has_room and not self._make_room(sequence, num_tokens, draft):
            return False
        num_logits = 1 if num_tokens == num_known else 0
        if num_logits and sequence.spec_token_ids:
            num_spec = self._speculate(sequence, num_tokens, draft)
            num_tokens, num_logits = num_tokens + num_spec, 1 + num_spec
        budget.left -= num_tokens
        draft.grant(sequence, num_tokens, num_logits)
        return True

    def _speculate(self, sequence: Sequence, num_known: int, draft: PlanDraft) -> int:
        """How many of its guesses a sequence computes behind its known tokens: what its end, the budget and free blocks
        allow. Nobody is preempted for a guess."""
        num_left = num_left_to_draw(sequence, self._max_model_len)
        num_spec = min(len(sequence.spec_token_ids), num_left - 1)
        num_spec = self._budget.share(num_known + num_spec) - num_known
        if num_spec and not self._cache.grow(sequence, num_known + num_spec):
            num_spec = 0
        sequence.spec_token_ids = sequence.spec_token_ids[:num_spec]
        if num_spec:
            draft.spec_token_ids[len(draft.rows)] = sequence.spec_token_ids
        return num_spec

    def _make_room(self, sequence: Sequence, num_tokens: int, draft: PlanDraft) -> bool:
        """Blocks for a running sequence, at the cost of the worst ones. False: that was the sequence itself."""
        while not self._cache.grow(sequence, num_tokens):
            victim = self._places.preempt_worst()
            draft.num_preempted += 1
            draft.growth = None
            if victim is sequence:
                return False
        return True
