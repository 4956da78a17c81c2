"""StepTimer: how long steps of a model take, planned by hand.

Plans go through the cache's own bookkeeping, so that any shape takes one step to reach: what is in KV blocks does not
matter, so no prompt is prefilled first, and nothing is scheduled. A host is timed from a step's submission to its
result. A device that runs asynchronously always has a step waiting, so the time between two results counts; its plans
are made before, as it would else wait for them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import islice

from octavo.cache.block_pool import PrefixMatch
from octavo.cache.blocks import NULL_BLOCK, BlockId, live
from octavo.cache.kv_cache import KVCache
from octavo.executor.executor import Executor
from octavo.messages import PendingStep, StepPlan
from octavo.observe.event_log import EventLog
from octavo.request import Request, SequenceId
from octavo.request import Sequence as Stream
from octavo.sampling_params import SamplingParams
from octavo.scheduler.step import PlanDraft

BESIDE_CONTEXT = 256  # tokens that each of them has


_WARM_UP = 2  # steps


_PARAMS = SamplingParams(max_tokens=1_000_000, ignore_eos=True, detokenize=False)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a point is measured: at least num_steps steps, and more until they have lasted so many seconds."""

    num_steps: int = 4
    seconds: float = 0.25

    @property
    def most_steps(self) -> int:
        return 8 * self.num_steps

    def is_over(self, taken: Sequence[float]) -> bool:
        return len(taken) >= self.most_steps or (len(taken) >= self.num_steps and sum(taken) >= self.seconds)


class StepTimer:
    """Owner of an executor's rows and blocks for the time of a measurement. clock: in seconds. ratios: of each step
    that was timed, its seconds over the median of its point."""

    def __init__(self, executor: Executor, patience: Patience, clock: Callable[[], float] = time.perf_counter) -> None:
        self._executor = executor
        self._patience = patience
        self._clock = clock
        self.is_asynchronous = executor.shape.is_asynchronous
        self._vocab_size = executor.shape.limits.vocab_size
        self._num_steps = self._num_entered = 0
        self.ratios: list[float] = []
        shape = executor.shape
        self._cache = KVCache(
            num_blocks=shape.layout.num_blocks,
            block_size=shape.layout.block_size,
            groups=shape.groups,
            enable_prefix_caching=False,
            events=EventLog(0),
            clock=clock,
        )
        self._written: set[BlockId] = set()
        self._source = self._write_a_block()

    def fits(self, lens: Sequence[int]) -> bool:
        """Whether sequences of these lengths can be in the steps of a point."""
        shape, most = self._executor.shape, _WARM_UP + self._patience.most_steps + 1
        return (
            len(lens) <= shape.limits.max_num_seqs
            and max(lens) + most <= shape.limits.max_model_len
            and sum(self._cache.max_blocks(one + most, one) for one in lens) <= self._cache.num_available_blocks
        )

    def decode(self, batch: int, context: int) -> float:
        """Seconds of a step in which so many sequences decode."""
        return self._median(self._steps([context - 1] * batch, None))

    def mixed(self, prefill: int, start: int, decodes: int) -> float:
        """Seconds of a step with a chunk and so many decodes."""
        return self._median(self._steps([BESIDE_CONTEXT - 1] * decodes, (start, prefill)))

    def _median(self, plans: Generator[StepPlan]) -> float:
        """Of the steps after those that warm up."""
        taken: list[float] = []
        held: PendingStep | None = None
        ready = list(islice(plans, _WARM_UP + self._patience.most_steps + 1)) if self.is_asynchronous else plans
        mark = self._clock()
        for plan in ready:
            begin = self._clock()
            pending: PendingStep | None = self._executor.submit(plan)
            if self.is_asynchronous:
                pending, held, begin = held, pending, mark
            if pending is None:
                continue
            pending.result()
            mark = self._clock()
            taken.append(mark - begin)
            if self._patience.is_over(taken[_WARM_UP:]):
                break
        if held is not None:
            held.result()
        plans.close()
        timed = taken[_WARM_UP:]
        median = statistics.median(timed)
        if median > 0.0:
            self.ratios += [seconds / median for seconds in timed]
        return median

    def _steps(self, decode_lens: Sequence[int], chunk: tuple[int, int] | None) -> Generator[StepPlan]:
        """Plans of one shape without end: decodes go on, the chunk is another sequence's each time."""
        draft = PlanDraft()
        decodes = [self._enter(draft, row, num_computed, 1) for row, num_computed in enumerate(decode_lens)]
        chunks: list[Stream] = []
        try:
            while True:
                freed = [one.row for one in chunks]
                for one in chunks:
                    self._cache.free(one, "finished")
                chunks = [self._enter(draft, len(decodes), *chunk)] if chunk is not None else []
                for one in (*decodes, *chunks):
                    self._grant(draft, one)
                draft.advance()
                yield self._seal(draft, freed)
                draft = PlanDraft()
        finally:
            for one in (*decodes, *chunks):
                self._cache.free(one, "finished")
            freed = [one.row for one in (*decodes, *chunks)]
            self._executor.submit(self._seal(PlanDraft(), freed)).result()

    def _enter(self, draft: PlanDraft, row: int, num_computed: int, num_next: int) -> Stream:
        """A sequence takes a row, as if its first tokens had been computed."""
        self._num_entered += 1
        number, vocab_size = self._num_entered, self._vocab_size
        token_ids = [(number * 7919 + place * 31) % vocab_size for place in range(num_computed + num_next)]
        request = Request(f"{number}", token_ids, _PARAMS, number, 0.0, _PARAMS.max_tokens or 1)
        stream = Stream(SequenceId(number), request, 0, list(token_ids), row=row)
        request.sequences.append(stream)
        self._cache.start(stream, PrefixMatch(0, [[] for _ in self._cache.groups]))
        if num_computed:
            self._grow(stream, num_computed)
            stream.num_computed_tokens = num_computed
        draft.enter(stream)
        return stream

    def _grant(self, draft: PlanDraft, stream: Stream) -> None:
        num_tokens = max(1, len(stream.token_ids) - stream.num_computed_tokens)
        self._grow(stream, num_tokens)
        draft.grant(stream, num_tokens, num_logits=1)

    def _grow(self, stream: Stream, num_tokens: int) -> None:
        has_room = self._cache.grow(stream, num_tokens)
        assert has_room, "a point is measured only if it fits"

    def _seal(self, draft: PlanDraft, freed: list[int]) -> StepPlan:
        """Blocks that no step has written are copied from one that was: a host's unwritten memory reads too fast."""
        writes, copies = self._cache.take_changes()
        taken = {BlockId(one) for write in writes for one in write.block_ids} - {NULL_BLOCK}
        if self._written:
            copies += [(self._source, block_id) for block_id in sorted(taken - self._written)]
        self._written |= taken
        self._num_steps += 1
        changes = writes, copies
        return draft.seal(step_id=self._num_steps, freed_rows=freed, block_changes=changes, prompt_logprobs=[])

    def _write_a_block(self) -> BlockId:
        """A block with real keys and values, as many as a step writes, which stays taken."""
        draft = PlanDraft()
        stream = self._enter(draft, 0, 0, min(self._cache.block_size, self._executor.shape.limits.max_num_tokens))
        self._grant(draft, stream)
        self._executor.submit(self._seal(draft, [])).result()
        self._executor.submit(self._seal(PlanDraft(), [0])).result()
        return live(self._cache.tables[stream.sequence_id].block_ids)[0]
