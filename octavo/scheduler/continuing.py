"""Continuing: what the running sequences compute in a step, and the token budget that all sequences share.

    max_num_batched_tokens = 8    │ d │ d │ d │ p p p p p │          three decodes, then 5 of a prompt's tokens

There are no phases: a sequence wants to compute the tokens that it has not computed yet.

    known     one for a decode, many for a prompt that is computed in chunks
    guesses   behind them, if Sequence.spec_token_ids has any

A sequence that finds no block for its known tokens preempts the worst of the running, never a better one; it may be
the worst itself.
"""

from __future__ import annotations

import math
from itertools import islice

from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.errors import ConfigError
from octavo.request import Request, Sequence
from octavo.scheduler.beams import num_candidates
from octavo.scheduler.places import Places
from octavo.scheduler.step import PlanDraft


class TokenBudget:
    """size: the tokens of a step. left: those of this step that no sequence has yet."""

    def __init__(self, config: SchedulerConfig, size: int) -> None:
        threshold = config.long_prefill_token_threshold
        if threshold and not config.enable_chunked_prefill:
            raise ConfigError(
                f"long_prefill_token_threshold is {threshold} and enable_chunked_prefill is off, but a threshold cuts "
                "prompts into chunks: set the threshold to 0 or turn chunked prefill on"
            )
        self.size = size
        self.left = size
        self.longest_share = min(threshold, size) if threshold else size
        self.may_cut_prompts = config.enable_chunked_prefill

    def share(self, num_wanted: int) -> int:
        """How many of the tokens that it wants a running sequence gets."""
        return min(num_wanted, self.left, self.longest_share)

    def first_share(self, num_wanted: int, is_resuming: bool) -> int:
        """The same for a starting sequence. Without chunked prefill a prompt is computed whole or not at all; but a
        preempted sequence may always be cut, or it could outgrow the budget for ever."""
        share = self.share(num_wanted)
        if share < num_wanted and not (self.may_cut_prompts or is_resuming):
            return 0
        return share


class Continuing:
    """Grants running sequences their tokens, the best first."""

    def __init__(self, places: Places, cache: KVCache, budget: TokenBudget) -> None:
        self._places = places
        self._cache = cache
        self._budget = budget

    def continue_from(self, index: int, draft: PlanDraft, priority: float = math.inf) -> int:
        """Grant running sequences their tokens, from this one on, as long as none has a worse priority -> the next."""
        running, budget = self._places.running, self._budget
        searching = self._places.searching
        may_run_on = priority == math.inf and not searching
        while index < len(running) and budget.left and running[index].request.priority <= priority:
            if may_run_on and (num_decodes := self._decode_from(index, draft)):
                index += num_decodes
                continue
            sequence = running[index]
            if searching and sequence.request.request_id in searching:
                if not self.continue_beams(sequence.request, draft):
                    break
                index += len(sequence.request.sequences)
                continue
            if not self.continue_one(sequence, draft):
                break
            index += 1
        return index

    def _decode_from(self, index: int, draft: PlanDraft) -> int:
        """Grant the next token to running sequences from this one on, up to one that computes more than its last token,
        is about to end, has guesses or finds no block -> how many. Mostly these are all."""
        cache, tables, left = self._cache, self._cache.tables, self._budget.left
        decodes: list[Sequence] = []
        for sequence in islice(self._places.running, index, index + left):
            num_computed, num_pending = sequence.num_computed_tokens, sequence.num_pending
            num_planned = len(sequence.token_ids) + num_pending
            if (
                num_planned - num_computed != 1
                or num_planned >= sequence.max_len
                or sequence.spec_token_ids
                or (num_computed >= tables[sequence.sequence_id].room and not cache.grow(sequence, 1))
            ):
                break
            decodes.append(sequence)
        self._budget.left = left - len(decodes)
        draft.grant_decodes(decodes)
        return len(decodes)

    def continue_beams(self, request: Request, draft: PlanDraft) -> bool:
        """Grant each beam of a request its next token, or none of them: they wait for each other. False: they were
        preempted."""
        beams, budget, cache = request.sequences, self._budget, self._cache
        if budget.left < len(beams) or beams[0].num_computed_tokens == beams[0].num_tokens:
            return True  # the step has no room for all, or nobody knows yet where they go on
        tables = cache.tables
        lacking = [one for one in beams if one.num_computed_tokens >= tables[one.sequence_id].room]
        while cache.num_blocks_for_next(lacking) > cache.num_available_blocks:
            victim = self._places.preempt_worst("blocks", beams[0])
            draft.num_preempted += 1
            draft.growth = None
            if victim.request is request:
                return False
        self._places.seat(lacking)
        for beam in lacking:
            has_room = cache.grow(beam, 1)
            assert has_room, f"beam {beam.sequence_id} was promised blocks that are not there"
        for beam in beams:
            draft.grant(beam, 1, num_logits=0)
        first, num = len(draft.rows) - len(beams), num_candidates(request)
        draft.candidates.update(dict.fromkeys(range(first, len(draft.rows)), num))
        budget.left -= len(beams)
        return True

    def continue_one(self, sequence: Sequence, draft: PlanDraft) -> bool:
        """Grant a running sequence its next tokens, if it has any. False: it was preempted."""
        budget = self._budget
        num_computed = sequence.num_computed_tokens
        num_pending = sequence.num_pending
        num_planned = len(sequence.token_ids) + num_pending
        if num_pending and (num_planned >= sequence.max_len or sequence.spec_token_ids):
            return True  # the token being drawn is its last, or nobody knows yet where it goes on
        num_known = num_planned - num_computed
        num_tokens = 1 if num_known == 1 else budget.share(num_known)
        if num_tokens == 0:
            return True  # only its prompt was wanted
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
        """How many of its guesses a sequence computes behind its known tokens: as many as its length, the budget and
        the free blocks allow. No sequence is preempted for a guess."""
        num_left = sequence.max_len - len(sequence.token_ids)
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
            victim = self._places.preempt_worst("blocks", sequence)
            draft.num_preempted += 1
            draft.growth = None
            if victim is sequence:
                return False
        return True
