"""Random engines under random load: no sequence's tokens change, and the cache's invariants hold.

Hypothesis drives a Simulator step by step: arrivals, aborts between and within steps, steps that fail. The
fake executor asserts every rule of a plan, `checks` proves the cache's invariants after every half step,
and each sequence must draw exactly what it would have drawn alone.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from octavo.cache.blocks import Root, chain_hash
from octavo.cache.invariants import check
from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError
from octavo.observe.events import Preempted, Scheduled, Started
from octavo.request import Request, Sequence, SequenceState
from tests.fake_tokens import VOCAB_SIZE, extend_prefix, generate_alone, prefix_of_adapter
from tests.simulate import Simulator, make_request

MAX_MODEL_LEN = 300
COMMON_PREFIX = [(i * 37) % VOCAB_SIZE for i in range(80)]
WINDOWS: list[tuple[int | None, ...]] = [
    (None,),
    (None, None, None),
    (8,),
    (40, None),
    (20, 20, 20, None),
    (5, 5, 33, 33, None, None),
]


class RandomRun(RuleBasedStateMachine):
    @initialize(
        block_size=st.sampled_from([8, 16, 32]),
        num_blocks=st.integers(6, 60),
        windows=st.sampled_from(WINDOWS),
        max_num_seqs=st.integers(1, 8),
        budget=st.sampled_from([3, 16, 64, 256]),
        is_chunked=st.booleans(),
        threshold=st.sampled_from([0, 5]),
        policy=st.sampled_from(["fcfs", "priority"]),
        max_bypasses=st.sampled_from([0, 1, 4]),
        has_prefix_cache=st.booleans(),
        conservativeness=st.sampled_from([0, 0, 0.5, 1]),
        run_lens=st.sampled_from([[1], [1], [0, 1, 1, 3], [1, 2, 9], [0, 1]]),
        num_adapter_slots=st.integers(0, 2),
        num_more_kept=st.sampled_from([None, 0, 1]),
    )
    def build(
        self,
        block_size,
        num_blocks,
        windows,
        max_num_seqs,
        budget,
        is_chunked,
        threshold,
        policy,
        max_bypasses,
        has_prefix_cache,
        conservativeness,
        run_lens,
        num_adapter_slots,
        num_more_kept,
    ):
        dice = random.Random(0)
        self.reads_adapters = reads_adapters = num_adapter_slots > 0 and num_more_kept is not None
        self.run_lens = run_lens
        self.policy, self.max_bypasses = policy, max_bypasses
        self.simulator = Simulator(
            num_blocks=num_blocks,
            block_size=block_size,
            windows=windows,
            config=SchedulerConfig(
                max_num_batched_tokens=budget,
                max_num_seqs=max_num_seqs,
                enable_chunked_prefill=is_chunked,
                long_prefill_token_threshold=threshold if is_chunked else 0,
                scheduling_policy=policy,
                max_bypasses=max_bypasses,
                schedule_conservativeness=conservativeness,
            ),
            max_model_len=MAX_MODEL_LEN,
            enable_prefix_caching=has_prefix_cache,
            checks=True,
            run_len=None if run_lens == [1] else lambda: dice.choice(run_lens),
            num_adapter_slots=num_adapter_slots,
            num_kept_adapters=num_adapter_slots + num_more_kept if reads_adapters else 0,
        )
        self.has_adapters = num_adapter_slots > 0
        self.requests: list[Request] = []
        self.cut_short: set[Sequence] = set()
        self.has_failed = False

    @rule(
        shared_len=st.sampled_from([0, 16, 64]) | st.integers(0, 80),
        own_len=st.sampled_from([16, 32]) | st.integers(1, 60),
        variant=st.integers(0, 3),
        max_tokens=st.just(0) | st.integers(1, 50) | st.integers(1, 50),
        n=st.sampled_from([1, 1, 1, 2, 4]),
        priority=st.integers(0, 2),
        salt=st.sampled_from([None, None, "tenant"]),
        prompt_logprobs=st.sampled_from([None, None, None, 1]),
        stops=st.sampled_from([[], [], list(range(0, VOCAB_SIZE, 20))]),
        adapter=st.sampled_from([None, 1, 2, 3]),
    )
    def arrive(self, shared_len, own_len, variant, max_tokens, n, priority, salt, prompt_logprobs, stops, adapter):
        number = len(self.requests)
        own = [(variant * 101 + i * 7) % VOCAB_SIZE for i in range(own_len)]
        params = {} if prompt_logprobs is None or max_tokens == 0 else {"prompt_logprobs": prompt_logprobs}
        request = make_request(
            f"r{number}",
            COMMON_PREFIX[:shared_len] + own,
            n=n if max_tokens else 1,
            max_tokens=max_tokens,
            priority=priority,
            cache_salt=salt,
            seed=number % 2,
            stop_token_ids=stops,
            min_tokens=min(2, max_tokens),
            adapter=adapter if self.has_adapters else None,
            **params,
        )
        try:
            self.simulator.add(request)
        except InvalidRequestError:
            return
        self.requests.append(request)

    @rule(num_steps=st.integers(1, 30))
    def step(self, num_steps):
        for _ in range(num_steps):
            self.simulator.step()
        self.check_cached_content()

    @precondition(lambda self: self.simulator.scheduler.num_running)
    @rule(
        num_steps=st.integers(1, 8), num_guesses=st.integers(1, 20), num_right=st.integers(0, 20), ahead=st.booleans()
    )
    def guess(self, num_steps, num_guesses, num_right, ahead):
        """Guess the next tokens of all decoding sequences; the first guesses are right."""
        for _ in range(num_steps):
            for sequence in self.simulator.scheduler.sequences:
                num_drawn, request = sequence.num_output_tokens, sequence.request
                if sequence.state is SequenceState.RUNNING and num_drawn:
                    num_tokens = num_drawn + num_guesses
                    given = request.prompt_token_ids, num_tokens, request.seed, sequence.index
                    truth = generate_alone(*given, first_prefix(request))
                    wrong = [(token_id + 1) % VOCAB_SIZE for token_id in truth[num_drawn + num_right :]]
                    sequence.spec_token_ids = truth[num_drawn : num_drawn + num_right] + wrong
            if ahead:
                self.simulator.step_overlapped(2)
            else:
                self.simulator.step()
        self.check_cached_content()

    @precondition(lambda self: self.requests)
    @rule(num_steps=st.integers(2, 30), data=st.data(), aborts=st.booleans())
    def overlap(self, num_steps, data, aborts):
        """Each step is planned and begun before the result of the one before it is known."""
        self.simulator.step_overlapped(num_steps)
        self.check_cached_content()
        if aborts:
            plan = self.simulator.plan()
            result = self.simulator.executor.execute(plan)
            ahead = self.simulator.plan()
            request = data.draw(st.sampled_from(self.requests))
            self.cut_short.update(sequence for sequence in request.sequences if sequence.finish_reason is None)
            self.simulator.scheduler.abort(request.request_id)
            self.simulator.take(plan, result)
            self.simulator.carry_out(ahead)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), is_within_step=st.booleans())
    def abort(self, data, is_within_step):
        request = data.draw(st.sampled_from(self.requests))
        plan = self.simulator.plan() if is_within_step else None
        running = [sequence for sequence in request.sequences if sequence.finish_reason is None]
        assert self.simulator.scheduler.abort(request.request_id) == bool(running)
        self.cut_short.update(running)
        if plan is not None:
            self.simulator.carry_out(plan)

    @precondition(lambda self: self.requests)
    @rule(num_ahead=st.integers(0, 1))
    def fail(self, num_ahead):
        """A failed step: the worker updates its tables but computes nothing. Maybe with a step planned after it."""
        plans = [self.simulator.plan() for _ in range(1 + num_ahead)]
        columns = "rows", "num_computed_tokens", "num_scheduled_tokens", "num_logits", "prompt_logprobs"
        nothing = {name: [] for name in columns} | {"spec_token_ids": {}}
        for plan in plans:
            self.simulator.executor.execute(replace(plan, num_draws=[0] * len(plan.fork_rows), **nothing))
        updates = self.simulator.scheduler.fail("a kernel fell over")
        self.simulator.num_steps += 1
        self.has_failed = True
        self.cut_short.update(update.sequence for update in updates)
        check(self.simulator.cache, self.simulator.scheduler.sequences)

    @precondition(lambda self: self.simulator.scheduler.num_running)
    @rule(data=st.data())
    def end_from_outside(self, data):
        sequences = [s for s in self.simulator.scheduler.sequences if s.num_output_tokens]
        if sequences:
            sequence = data.draw(st.sampled_from(sequences))
            assert self.simulator.scheduler.finish_sequence(sequence.sequence_id, "stop", "END")
            self.cut_short.add(sequence)

    def teardown(self):
        if not hasattr(self, "simulator"):
            return
        self.simulator.run(max_steps=self.simulator.num_steps + 5_000)
        self.check_tokens()
        self.check_prompt_logprobs()
        self.check_cached_content()
        if not self.has_failed and 0 not in self.run_lens:  # sequences of a failed step, or that start again, go first
            self.check_nobody_starts_where_somebody_no_worse_is_preempted()
            if self.policy == "fcfs" and not self.reads_adapters:  # a request may wait for its own apart from the queue
                self.check_nobody_was_passed_too_often()
        assert self.simulator.cache.pool.num_owned == 0
        assert not self.simulator.cache.tables
        assert self.simulator.scheduler.num_waiting == self.simulator.scheduler.num_running == 0

    def check_tokens(self):
        streamed = defaultdict(list)
        for update in self.simulator.updates:
            streamed[update.sequence] += update.token_ids
        for request in self.requests:
            aborted = request.sequences[0] in self.cut_short
            assert aborted or len(request.sequences) == request.sampling_params.n
            for sequence in request.sequences:
                expected = alone(request, sequence.index)
                assert streamed[sequence] == sequence.output_token_ids
                if sequence in self.cut_short:
                    expected = expected[: sequence.num_output_tokens]
                assert sequence.output_token_ids == expected

    def check_cached_content(self):
        """Every slot of a block in the prefix tree holds the key and value of one of the tokens that name the block."""
        cache, slots = self.simulator.cache, self.simulator.executor.slots
        size = cache.block_size
        contents = {}
        for request in self.requests:
            for sequence in request.sequences:
                content, prefix = Root.of(request).hash(), first_prefix(request)
                for start in range(0, sequence.num_tokens - size + 1, size):
                    tokens, prefixes = sequence.token_ids[start : start + size], []
                    for token_id in tokens:
                        prefix = extend_prefix(prefix, token_id)
                        prefixes.append(prefix)
                    content = chain_hash(content, tokens)
                    contents[content] = prefixes
        for block_id, node in cache.tree.nodes.items():
            assert slots[block_id] == contents[node.content]

    def check_prompt_logprobs(self):
        reported = defaultdict(list)
        for update in self.simulator.updates:
            reported[update.sequence] += [row.token_ids[0] for row in update.prompt_logprobs]
        for request in self.requests:
            sequence = request.sequences[0]
            if request.sampling_params.prompt_logprobs is not None and sequence not in self.cut_short:
                assert reported[sequence] == request.prompt_token_ids[1:]

    def check_nobody_starts_where_somebody_no_worse_is_preempted(self):
        priorities = {request.request_id: request.priority for request in self.requests}
        if self.policy == "fcfs":
            priorities = dict.fromkeys(priorities, 0)
        started, preempted = [], []
        for event in self.simulator.events:
            if isinstance(event, Started):
                started.append(priorities[event.request_id])
            elif isinstance(event, Preempted):
                preempted.append(priorities[event.request_id])
            elif isinstance(event, Scheduled):  # the step is planned
                assert not started or not preempted or max(started) < min(preempted)
                started, preempted = [], []

    def check_nobody_was_passed_too_often(self):
        places = {request.request_id: place for place, request in enumerate(self.requests)}
        order = []
        for event in self.simulator.events:
            if isinstance(event, Started) and places[event.request_id] not in order:
                order.append(places[event.request_id])
        for index, place in enumerate(order):
            assert sum(1 for earlier in order[:index] if earlier > place) <= self.max_bypasses


def first_prefix(request: Request) -> int:
    return prefix_of_adapter(None if request.adapter is None else request.adapter.key)


def alone(request: Request, index: int) -> list[int]:
    """One sample's tokens without batching, under the same stop rules."""
    given = request.prompt_token_ids, request.max_output_tokens, request.seed, index
    drawn = generate_alone(*given, first_prefix(request))
    for num_tokens, token_id in enumerate(drawn, start=1):
        is_full = request.num_prompt_tokens + num_tokens >= MAX_MODEL_LEN
        if is_full or (token_id in request.stop_token_ids and num_tokens >= request.sampling_params.min_tokens):
            return drawn[:num_tokens]
    return drawn


TestRandomRun = RandomRun.TestCase
TestRandomRun.settings = settings(
    max_examples=150,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
