"""Starting: which of the waiting run from this step on.

    seats    one for each sample of the request         budget   a share of the step's tokens
    blocks   for all its tokens, and for those that it and the running will still draw (growth.py)

Whoever lacks any of these waits, and the event log says what it was. A request of a better priority need not lack
what worse ones have: they give way (giving_way.py).
"""

from __future__ import annotations

from octavo.cache.block_pool import PrefixMatch
from octavo.cache.kv_cache import KVCache
from octavo.request import Sequence
from octavo.scheduler.budget import TokenBudget
from octavo.scheduler.draft import PlanDraft
from octavo.scheduler.giving_way import Lack, who_gives_way
from octavo.scheduler.growth import Growth
from octavo.scheduler.places import Places
from octavo.scheduler.prompt_logprobs import PromptLogprobs
from octavo.scheduler.roster import num_seats


class Starting:
    """Owner of nothing: it asks the others what there is."""

    def __init__(
        self, places: Places, cache: KVCache, budget: TokenBudget, growth: Growth, prompt_logprobs: PromptLogprobs
    ) -> None:
        self._places = places
        self._cache = cache
        self._budget = budget
        self._growth = growth
        self._prompt_logprobs = prompt_logprobs

    def start_waiting(self, draft: PlanDraft) -> None:
        """Whoever fits. Not in a step that preempted: whoever started now would be the next to be preempted."""
        places = self._places
        if draft.num_preempted == draft.num_gave_way == 0:
            for sequence in places.waiting.line():
                has_started = self.try_start(sequence, draft)
                if not has_started and (self._budget.left == 0 or places.seats.num_free == 0):
                    break
        for sequence in places.waiting.take_unexplained():
            if draft.num_preempted:
                places.explain(sequence, "blocks", "a running sequence found none, so nobody starts in this step")
            elif draft.num_gave_way:
                places.explain(sequence, "turn", "a better request took the place of one that ran")
            else:
                places.explain(sequence, "turn", "an earlier request starts first")

    def try_start(self, sequence: Sequence, draft: PlanDraft, *, is_alone: bool = False) -> bool:
        """Start a waiting sequence if seats, budget and blocks allow; else say what does not. is_alone: no blocks are
        kept free for anybody's growth."""
        cache, budget, places = self._cache, self._budget, self._places
        if num_seats(sequence) > places.seats.num_free:
            places.explain(sequence, "seats", f"needs {num_seats(sequence)}, {places.seats.num_free} are free")
            return False
        match, num_tokens = self._first_step(sequence)
        if num_tokens == 0:
            num_wanted = sequence.num_tokens - match.num_tokens
            places.explain(sequence, "budget", f"wants {num_wanted} tokens, the step has {budget.left} left")
            return False
        num_blocks = cache.num_blocks_to_start(sequence, match, budget.longest_share)
        if num_blocks > cache.num_available_blocks:
            places.explain(sequence, "blocks", f"needs {num_blocks}, {cache.num_available_blocks} are available")
            return False
        self._growth.guess_len(sequence)
        num_kept = 0 if is_alone else self._num_blocks_kept(sequence, draft)
        if num_blocks + num_kept > cache.num_available_blocks:
            lacking = f"needs {num_blocks} and {num_kept} for its growth and that of those who run"
            places.explain(sequence, "blocks", f"{lacking}, {cache.num_available_blocks} are available")
            return False
        self._start(sequence, match, num_tokens, draft)
        return True

    def start_in_place_of_worse(self, sequence: Sequence, draft: PlanDraft) -> None:
        """Start a waiting sequence, at the cost of running ones of a worse priority if need be; or leave it waiting."""
        cache, places = self._cache, self._places
        worse = [one for one in places.running if one.request.priority > sequence.request.priority]
        match, num_tokens = self._first_step(sequence)
        if num_tokens == 0:
            return
        self._growth.guess_len(sequence)
        others = places.running[: len(places.running) - len(worse)]
        growth = self._growth.of_all(others, [one for one in places.forking if one in others]) + draft.joining_growth
        num_blocks = cache.num_blocks_to_start(sequence, match, self._budget.longest_share)
        lack = Lack(
            seats=num_seats(sequence) - places.seats.num_free,
            blocks=num_blocks - cache.num_available_blocks,
            growth=cache.num_blocks_to_grow(growth + self._growth.of(sequence)) if others or draft.joining else 0,
        )
        leaving = who_gives_way(lack, worse, cache, match)
        if leaving is None:
            return
        for one in leaving:
            worst = places.preempt_worst()
            assert worst is one, "the worst of the running go first"
            draft.num_gave_way += 1
            draft.growth = None
        self._start(sequence, match, num_tokens, draft)

    def _first_step(self, sequence: Sequence) -> tuple[PrefixMatch, int]:
        """What the prefix tree has of a waiting sequence, and how many tokens it would compute in this step."""
        match = self._cache.find_prefix(sequence, self._num_readable(sequence))
        num_wanted = sequence.num_tokens - match.num_tokens
        return match, self._budget.first_share(num_wanted, is_resuming=sequence.request.num_preemptions > 0)

    def _num_readable(self, sequence: Sequence) -> int:
        """How many leading tokens may come from the prefix tree. One is always left, to draw from; and prompt
        log-probabilities not reported yet need their positions computed."""
        if sequence.request.sampling_params.skip_reading_prefix_cache:
            return 0
        num_reported = self._prompt_logprobs.num_reported(sequence)
        return sequence.num_tokens - 1 if num_reported is None else num_reported

    def _num_blocks_kept(self, sequence: Sequence, draft: PlanDraft) -> int:
        """Blocks that stay free when a sequence starts beside others; where there are none it may always."""
        places = self._places
        if draft.growth is None:
            draft.growth = self._growth.of_all(places.running, places.forking)
        if not (places.running or draft.joining):
            return 0
        return self._cache.num_blocks_to_grow(draft.growth + draft.joining_growth + self._growth.of(sequence))

    def _start(self, sequence: Sequence, match: PrefixMatch, num_tokens: int, draft: PlanDraft) -> None:
        self._places.start(sequence, match, num_tokens)
        self._budget.left -= num_tokens
        draft.joining_growth += self._growth.of(sequence) + sequence.num_tokens - match.num_tokens - num_tokens
        draft.enter(sequence)
        draft.grant(sequence, num_tokens, num_logits=int(match.num_tokens + num_tokens == sequence.num_tokens))
