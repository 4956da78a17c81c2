"""Starting: which requests can run at all, and which of the waiting run from this step on.

    seats    one for each sample of the request         budget   a share of the step's tokens
    blocks   for all its tokens, and for those that it and the running will still draw: their growth
    slot     of its adapter, if it has one, which workers must have read

A sequence that lacks any of these waits, and the event log has the reason.

    pool   │ a a a a │ b b │ c c c │ . . . . . . . . │
                                     a a b b c c c     expected growth, less what ends before: the rest may be taken

A sequence that starts on blocks that others are about to need starts too early: one of them is preempted, and computed
twice. A sequence that only its length can end grows to max_tokens. Any other is expected to get as long as the recent
ones did, and to end any moment once it is longer; until the first have ended no growth is expected. A guess that is
too low costs a preemption, one that is too high an idle block, never an answer.
"""

from __future__ import annotations

from collections.abc import Sequence as Listlike

from octavo.cache.block_pool import PrefixMatch
from octavo.cache.kv_cache import KVCache
from octavo.errors import InvalidRequestError
from octavo.request import Request, Sequence
from octavo.scheduler.continuing import TokenBudget
from octavo.scheduler.places import Places
from octavo.scheduler.prompt_logprobs import PromptLogprobs
from octavo.scheduler.roster import WaitReason
from octavo.scheduler.step import PlanDraft

AWAITS_ADAPTER: tuple[WaitReason, str] = "adapters", "its adapter is being read, while steps go on"
_MEMORY = 64  # sequences: one that ended so long ago weighs a third of the last one


class Growth:
    """Owner of the guess. conservativeness: a factor on what is expected; 0: start on whatever is free."""

    def __init__(self, conservativeness: float) -> None:
        self._conservativeness = conservativeness
        self._mean_output_len = 0.0
        self._num_ended = 0

    def guess_len(self, sequence: Sequence) -> None:
        """Note on a starting sequence how many tokens it is expected to end with."""
        request, params = sequence.request, sequence.request.sampling_params
        output_len = request.max_output_tokens
        if request.stop_token_ids or params.stop:
            output_len = min(output_len, max(params.min_tokens, round(self._mean_output_len)))
        sequence.expected_len = request.num_prompt_tokens + output_len

    def of(self, sequence: Sequence) -> int:
        """Tokens that a sequence, and the samples that will fork from it, are expected to still take."""
        return self._scaled(sequence.num_seats * (sequence.expected_len - sequence.num_tokens))

    def of_all(self, running: Listlike[Sequence], forking: Listlike[Sequence]) -> int:
        """How many more tokens than now all running sequences will have at their peak. Each gains one a step once its
        prompt is computed, and gives back what it alone has when it ends. forking: those whose samples have not
        forked."""
        lives = [(one.expected_len - len(one.token_ids), _own_len(one)) for one in running]
        for one in forking:
            lives += [(one.expected_len - one.num_tokens, 0)] * (one.num_seats - 1)
        lives = sorted((life for life in lives if life[0] > 0), reverse=True)
        given_back = sum(own for _, own in lives)
        most = 0
        for num_left, (steps, own) in enumerate(lives, 1):
            given_back -= own
            most = max(most, num_left * steps - given_back)
        num_to_compute = sum(max(0, len(one.token_ids) - one.num_computed_tokens - 1) for one in running)
        return self._scaled(most) + num_to_compute

    def ended(self, sequence: Sequence) -> None:
        """Learn from a sequence that ended with a stop or its length. The first ones count equally, later ones fade."""
        self._num_ended += 1
        step = 1 / min(self._num_ended, _MEMORY)
        self._mean_output_len += (sequence.num_output_tokens - self._mean_output_len) * step

    def _scaled(self, num_tokens: int) -> int:
        return round(self._conservativeness * max(0, num_tokens))


def _own_len(sequence: Sequence) -> int:
    """Tokens whose blocks no other sequence is known to hold."""
    request = sequence.request
    num_shared = request.num_cached_tokens if request.sampling_params.num_sequences == 1 else request.num_prompt_tokens
    return len(sequence.token_ids) - num_shared


class Starting:
    """Starts sequences if everything they need is free."""

    def __init__(
        self, places: Places, cache: KVCache, budget: TokenBudget, growth: Growth, prompt_logprobs: PromptLogprobs
    ) -> None:
        self._places = places
        self._cache = cache
        self._budget = budget
        self._prompt_logprobs = prompt_logprobs
        self.growth = growth

    @property
    def has_lent(self) -> bool:
        """Whether blocks are on loan: they come back soon."""
        return bool(self._cache.pool.lent)

    def check(self, request: Request, max_len: int, max_model_len: int) -> None:
        """Raise InvalidRequestError unless the request can finish on this engine. One sequence alone must fit; n of
        them may take turns. max_len: the most tokens each of them may have."""
        name, num_prompt = f"request {request.request_id!r}", request.num_prompt_tokens
        n, is_search = request.sampling_params.num_sequences, request.sampling_params.use_beam_search
        budget, max_num_seqs = self._budget, self._places.seats.max_num_seqs
        if num_prompt == 0:
            raise InvalidRequestError(f"{name} has an empty prompt, allowed is one token or more")
        pools = request.pooling_params is not None
        if num_prompt >= max_model_len + pools:
            raise InvalidRequestError(
                f"{name} has {num_prompt} prompt tokens, allowed are {max_model_len - 1}, one less than max_model_len: "
                "shorten the prompt, set truncate_prompt_tokens, or raise max_model_len"
            )
        if request.max_output_tokens < 1 and not pools:
            raise InvalidRequestError(f"{name} has max_output_tokens {request.max_output_tokens}, allowed is 1 or more")
        if n > max_num_seqs:
            raise InvalidRequestError(
                f"{name} has n={n}, allowed is up to max_num_seqs={max_num_seqs}: lower n or raise max_num_seqs"
            )
        if is_search and n > budget.size:
            raise InvalidRequestError(
                f"{name} has {n} beams, but all of them must fit one step of {budget.size} tokens: lower n or best_of, "
                "or raise max_num_batched_tokens"
            )
        if not budget.may_cut_prompts and num_prompt > budget.size:
            raise InvalidRequestError(
                f"{name} has {num_prompt} prompt tokens, but without chunked prefill a prompt must fit one step of "
                f"{budget.size} tokens: raise max_num_batched_tokens or set enable_chunked_prefill=True"
            )
        self._check_blocks(request, name, max_len if pools else max_len - 1)  # the last token drawn is never read back

    def _check_blocks(self, request: Request, name: str, num_tokens: int) -> None:
        cache = self._cache
        num_needed, num_blocks = cache.max_blocks(num_tokens, self._budget.longest_share), cache.pool.num_blocks - 1
        params = request.sampling_params
        if params.use_beam_search:  # beams advance together, so all of them must fit
            num_shared = request.num_prompt_tokens // cache.block_size * sum(one.window is None for one in cache.groups)
            own = cache.max_blocks(num_tokens, 1) - num_shared
            num_needed = max(num_needed, num_shared + params.num_sequences * own)
        if num_needed > num_blocks:
            beams = f" of each of {params.num_sequences} beams" if params.use_beam_search else ""
            smaller_steps = "lower max_num_batched_tokens, " if cache.max_blocks(num_tokens, 1) <= num_blocks else ""
            raise InvalidRequestError(
                f"{name} needs {num_needed} KV blocks for {request.num_prompt_tokens} prompt and up to "
                f"{request.max_output_tokens} output tokens{beams}, the pool has {num_blocks}: lower max_tokens, "
                f"shorten the prompt, {smaller_steps}or raise kv_cache_memory_bytes"
            )

    def start_waiting(self, draft: PlanDraft) -> None:
        """Start the sequences that fit; none in a step that preempted, as it would be the next to be preempted."""
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
        """Start a waiting sequence if seats, budget and blocks allow; else explain which do not. is_alone: keep no
        blocks free for growth."""
        cache, budget, places = self._cache, self._budget, self._places
        if sequence.num_seats > places.seats.num_free:
            places.explain(sequence, "seats", f"needs {sequence.num_seats}, {places.seats.num_free} are free")
            return False
        if not self.is_at_hand(sequence):
            self.await_adapter(sequence)
            return False
        if not self.has_slot(sequence):
            places.explain(
                sequence, "adapters", "all slots have adapters of running sequences; max_loras is their number"
            )
            return False
        match, num_tokens = self.first_step(sequence)
        if num_tokens == 0:
            num_wanted = sequence.num_tokens - match.num_tokens
            places.explain(sequence, "budget", f"wants {num_wanted} tokens, the step has {budget.left} left")
            return False
        num_blocks = cache.num_blocks_to_start(sequence, match, budget.longest_share)
        if num_blocks > cache.num_available_blocks:
            places.explain(sequence, "blocks", f"needs {num_blocks}, {cache.num_available_blocks} are available")
            return False
        self.growth.guess_len(sequence)
        num_kept = 0 if is_alone else self._num_blocks_kept(sequence, draft)
        if num_blocks + num_kept > cache.num_available_blocks:
            lacking = f"needs {num_blocks} and {num_kept} for its growth and that of those who run"
            places.explain(sequence, "blocks", f"{lacking}, {cache.num_available_blocks} are available")
            return False
        self.start(sequence, match, num_tokens, draft)
        return True

    def is_at_hand(self, sequence: Sequence) -> bool:
        """Whether its adapter, if it has one, need not be read before it can start."""
        slots, adapter = self._places.seats.adapters, sequence.request.adapter
        return slots is None or adapter is None or slots.is_at_hand(adapter)

    def await_adapter(self, sequence: Sequence) -> None:
        """It waits apart from the queue until its adapter is read, so that it is in nobody's way."""
        slots, adapter = self._places.seats.adapters, sequence.request.adapter
        shelf = None if slots is None else slots.shelf
        assert shelf is not None, "adapters are read"
        assert adapter is not None, "it waits for one"
        shelf.want(adapter)
        reason, detail = AWAITS_ADAPTER
        if sequence.sequence_id in self._places.held:
            self._places.explain_held(sequence, reason, detail)
        else:
            self._places.hold(sequence, reason, detail)

    def has_slot(self, sequence: Sequence) -> bool:
        """Whether its adapter, if it has one, is in a slot or may take one."""
        slots, adapter = self._places.seats.adapters, sequence.request.adapter
        return slots is None or adapter is None or slots.has_room(adapter)

    def first_step(self, sequence: Sequence) -> tuple[PrefixMatch, int]:
        """What a waiting sequence finds in the prefix tree, and how many tokens it would compute in this step."""
        match = self._cache.find_prefix(sequence, self._num_readable(sequence))
        num_wanted = sequence.num_tokens - match.num_tokens
        is_resuming = sequence.request.num_preemptions > 0 or bool(sequence.request.begun_token_ids)
        is_resuming = is_resuming and sequence.request.pooling_params is None  # its tokens may have to be in one step
        return match, self._budget.first_share(num_wanted, is_resuming)

    def start(self, sequence: Sequence, match: PrefixMatch, num_tokens: int, draft: PlanDraft) -> None:
        self._places.start(sequence, match, num_tokens)
        self._budget.left -= num_tokens
        draft.joining_growth += self.growth.of(sequence) + sequence.num_tokens - match.num_tokens - num_tokens
        slots = self._places.seats.adapters
        draft.enter(sequence, -1 if slots is None else slots.slot_of(sequence))
        draft.grant(sequence, num_tokens, num_logits=int(match.num_tokens + num_tokens == sequence.num_tokens))

    def _num_readable(self, sequence: Sequence) -> int:
        """How many leading tokens may come from the prefix tree. One is always left, to draw from; and prompt
        log-probabilities not reported yet need their positions computed."""
        if sequence.request.sampling_params.skip_reading_prefix_cache:
            return 0
        owed = self._prompt_logprobs
        num_reported = owed.num_reported_of(sequence) if owed.num_reported else None
        return sequence.num_tokens - 1 if num_reported is None else num_reported

    def _num_blocks_kept(self, sequence: Sequence, draft: PlanDraft) -> int:
        """Blocks that stay free when a sequence starts beside others; one that starts alone needs to keep none."""
        places = self._places
        if draft.growth is None:
            draft.growth = self.growth.of_all(places.running, places.forking)
        if not (places.running or draft.joining):
            return 0
        return self._cache.num_blocks_to_grow(draft.growth + draft.joining_growth + self.growth.of(sequence))
