"""One mechanism per test: the budget, chunks, seats, forks, preemption and abort, and the plan that each leads to."""

import pytest

from octavo.messages import ForkRow, StepResult
from octavo.observe.events import Event, FirstToken, Forked, Preempted, PrefixHit, Scheduled, Started
from octavo.request import SequenceState
from tests.fake_tokens import generate_alone
from tests.scheduler import simulators
from tests.scheduler.simulators import prompt_of, seen
from tests.simulate import Arrival, make_request


def simulator_of(**options):
    """Sequences start on any free block, so that there is preemption."""
    return simulators.simulator_of(**{"max_num_seqs": 8, "schedule_conservativeness": 0} | options)


def assert_as_if_alone(*requests):
    for request in requests:
        assert len(request.sequences) == request.sampling_params.n
        for sequence in request.sequences:
            expected = generate_alone(request.prompt_token_ids, request.max_output_tokens, request.seed, sequence.index)
            assert sequence.output_token_ids == expected


class TestBudget:
    def test_a_prompt_is_cut_into_chunks(self):
        simulator = simulator_of(max_num_batched_tokens=40)
        request = make_request("a", prompt_of(100), max_tokens=3)
        simulator.add(request)
        plans = [simulator.step() for _ in range(5)]
        assert [plan.num_scheduled_tokens for plan in plans] == [[40], [40], [20], [1], [1]]
        assert [plan.num_computed_tokens for plan in plans] == [[0], [40], [80], [100], [101]]
        assert [plan.num_draws for plan in plans] == [[0], [0], [1], [1], [1]], "a chunk in the middle draws nothing"
        assert_as_if_alone(request)

    def test_decodes_go_first_and_a_prompt_gets_what_they_leave(self):
        simulator = simulator_of(max_num_batched_tokens=10)
        early = [make_request(name, prompt_of(3), max_tokens=10) for name in "abc"]
        late = make_request("d", prompt_of(30, start=500), max_tokens=2)
        simulator.add(*early)
        simulator.step()
        simulator.add(late)
        assert simulator.step().num_scheduled_tokens == [1, 1, 1, 7]
        simulator.run()
        assert_as_if_alone(*early, late)

    def test_a_threshold_bounds_one_prompts_share(self):
        simulator = simulator_of(max_num_batched_tokens=100, long_prefill_token_threshold=30)
        simulator.add(make_request("a", prompt_of(80)), make_request("b", prompt_of(20, start=500)))
        assert simulator.step().num_scheduled_tokens == [30, 20], "a short prompt need not wait for a long one"

    def test_without_chunks_a_prompt_comes_whole(self):
        simulator = simulator_of(max_num_batched_tokens=50, enable_chunked_prefill=False)
        simulator.add(make_request("a", prompt_of(40)), make_request("b", prompt_of(30, start=500)))
        assert simulator.step().num_scheduled_tokens == [40]
        assert simulator.step().num_scheduled_tokens == [1, 30]


class TestPlans:
    def test_a_sequences_tokens_are_sent_once(self):
        simulator = simulator_of()
        simulator.add(make_request("a", prompt_of(20), seed=9, stop_token_ids=[5]))
        first, second = simulator.step(), simulator.step()
        (new,) = first.new_rows
        assert (new.row, new.token_ids, new.seed, new.stop_token_ids) == (0, prompt_of(20), 9, frozenset({5}))
        assert not second.new_rows
        assert not second.block_writes, "slots 20 to 31 were given with the first plan"

    def test_rows_are_reused_once_freed(self):
        simulator = simulator_of(max_num_seqs=2)
        requests = [make_request(name, prompt_of(5), max_tokens=2) for name in "abcd"]
        simulator.add(*requests)
        simulator.step()
        simulator.step()
        plan = simulator.step()
        assert sorted(plan.freed_rows) == [0, 1]
        assert sorted(new.row for new in plan.new_rows) == [0, 1]
        simulator.run()
        assert_as_if_alone(*requests)

    def test_a_step_may_be_planned_before_the_one_before_it_is_known(self):
        simulator = simulator_of()
        request = make_request("a", prompt_of(5), max_tokens=3)
        simulator.add(request)
        first = simulator.plan()
        second = simulator.plan()
        assert second.num_computed_tokens == [5], "the place of the token that the first step draws"
        simulator.carry_out(first)
        third = simulator.plan()
        assert third.rows == first.rows
        simulator.carry_out(second)
        assert simulator.plan().rows == [], "the token being drawn is the last"
        simulator.carry_out(third)
        assert request.sequences[0].finish_reason == "length"
        assert_as_if_alone(request)

    @pytest.mark.parametrize("windows", [(None,), (12, 12, None)])
    def test_overlapped_steps_draw_the_same_tokens_under_pressure(self, windows):
        simulator = simulator_of(num_blocks=24, block_size=8, windows=windows)
        requests = [
            make_request(name, prompt_of(9 + 5 * place), n=2, max_tokens=20) for place, name in enumerate("abcd")
        ]
        simulator.add(*requests)
        simulator.step_overlapped(200)
        assert any(isinstance(event, Preempted) for event in simulator.events)
        assert_as_if_alone(*requests)
        assert simulator.cache.pool.num_owned == 0

    def test_every_step_is_an_event(self):
        simulator = simulator_of()
        simulator.add(make_request("a", prompt_of(5), max_tokens=3))
        simulator.run()
        columns = [(event.sequence_ids, event.num_computed, event.num_tokens) for event in seen(simulator, Scheduled)]
        assert columns == [((0,), (0,), (5,)), ((0,), (5,), (1,)), ((0,), (6,), (1,))]
        assert len(seen(simulator, FirstToken)) == 1

    def test_no_event_is_built_when_nobody_keeps_them(self):
        simulator = simulator_of(event_log_size=0)
        written: list[Event] = []
        simulator.events.write = written.append
        simulator.add(make_request("a", prompt_of(50), n=2))
        simulator.run()
        assert written == []


class TestForks:
    def test_the_prompt_is_computed_once_and_all_samples_draw_from_it(self):
        simulator = simulator_of()
        request = make_request("a", prompt_of(40), n=3, max_tokens=4)
        simulator.add(request)
        plan = simulator.step()
        assert plan.num_scheduled_tokens == [40]
        assert plan.fork_rows == [ForkRow(1, 0, 1), ForkRow(2, 0, 2)]
        assert plan.num_draws == [1, 1, 1]
        assert simulator.cache.pool.num_owned == 3
        copying = simulator.step()
        assert len(copying.copies) == 2, "the last, partly filled block, for all but its last owner"
        simulator.run()
        assert_as_if_alone(request)
        assert [event.num_shared_blocks for event in seen(simulator, Forked)] == [3, 3]

    def test_forks_come_when_the_last_chunk_is_planned(self):
        simulator = simulator_of(max_num_batched_tokens=16)
        request = make_request("a", prompt_of(40), n=2, max_tokens=4)
        simulator.add(request)
        assert [len(simulator.step().fork_rows) for _ in range(3)] == [0, 0, 1]
        simulator.run()
        assert_as_if_alone(request)

    def test_seats_are_reserved_for_forks_to_come(self):
        simulator = simulator_of(max_num_seqs=4, max_num_batched_tokens=16)
        wide = make_request("wide", prompt_of(40), n=3, max_tokens=4)
        others = [make_request(name, prompt_of(5, start=500), max_tokens=4) for name in "ab"]
        simulator.add(wide, *others)
        for _ in range(3):
            simulator.step()
        assert simulator.scheduler.num_running == 4, "three samples and one other"
        simulator.run()
        assert_as_if_alone(wide, *others)

    def test_samples_end_one_by_one(self):
        simulator = simulator_of()
        request = make_request("a", prompt_of(10), n=2, max_tokens=8)
        simulator.add(request)
        simulator.step()
        first, second = request.sequences
        assert simulator.scheduler.finish_sequence(first.sequence_id, "stop", "END")
        assert not simulator.scheduler.finish_sequence(first.sequence_id, "stop", "END"), "it has ended already"
        simulator.run()
        assert (first.finish_reason, first.stop_reason, first.num_output_tokens) == ("stop", "END", 1)
        assert (second.finish_reason, second.num_output_tokens) == ("length", 8)


class TestPrefixCache:
    def test_a_cached_prompt_is_not_computed_again(self):
        simulator = simulator_of()
        first, second = make_request("a", prompt_of(70)), make_request("b", [*prompt_of(64), 7, 7])
        simulator.add(first)
        simulator.run()
        simulator.add(second)
        assert simulator.step().num_scheduled_tokens == [2]
        assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 64)
        simulator.run()
        assert_as_if_alone(first, second)

    def test_the_last_block_of_a_cached_prompt_is_computed_again(self):
        simulator = simulator_of()
        requests = [make_request(name, prompt_of(32)) for name in "ab"]
        simulator.add(*requests)
        assert simulator.step().num_scheduled_tokens == [32, 16], "there must be a token to draw from"
        simulator.run()
        assert_as_if_alone(*requests)

    def test_what_a_step_computes_is_found_within_it(self):
        simulator = simulator_of()
        requests = [make_request(name, prompt_of(40)) for name in "abc"]
        simulator.add(*requests)
        assert simulator.step().num_scheduled_tokens == [40, 8, 8]
        simulator.run()
        assert_as_if_alone(*requests)

    def test_another_salt_finds_no_blocks(self):
        simulator = simulator_of()
        simulator.add(make_request("a", prompt_of(40), cache_salt="x"), make_request("b", prompt_of(40)))
        assert simulator.step().num_scheduled_tokens == [40, 40]

    def test_a_request_may_decline_to_read(self):
        simulator = simulator_of()
        simulator.add(make_request("a", prompt_of(40)))
        simulator.step()
        simulator.add(make_request("b", prompt_of(40), skip_reading_prefix_cache=True))
        assert simulator.step().num_scheduled_tokens == [1, 40]


class TestPreemption:
    def tight(self, **options):
        """Two sequences that both grow to 4 blocks, in a pool of 6."""
        simulator = simulator_of(num_blocks=7, **options)
        requests = [make_request(name, prompt_of(40, start), max_tokens=20) for name, start in (("a", 0), ("b", 500))]
        return simulator, requests

    def test_the_latest_sequence_is_preempted_and_resumes_from_its_cached_blocks(self):
        simulator, (first, second) = self.tight()
        simulator.add(first, second)
        simulator.run()
        assert_as_if_alone(first, second)
        assert (first.num_preemptions, second.num_preemptions) == (0, 1)
        (preempted,) = seen(simulator, Preempted)
        assert preempted.request_id == "b"
        (hit,) = seen(simulator, PrefixHit)
        assert hit.num_tokens == 32, "its third block was taken and is computed again"

    def test_a_bad_priority_gives_way(self):
        simulator, (first, second) = self.tight(scheduling_policy="priority")
        first.priority = 1
        simulator.add(first, second)
        simulator.run()
        assert_as_if_alone(first, second)
        assert (first.num_preemptions, second.num_preemptions) == (1, 0)

    def test_the_preempted_resume_before_the_fresh(self):
        simulator, (first, second) = self.tight()
        fresh = make_request("fresh", prompt_of(3))
        simulator.run([Arrival(0, first), Arrival(0, second), Arrival(10, fresh)])
        order = [event.request_id for event in seen(simulator, Started)]
        assert order == ["a", "b", "fresh", "b"], "fresh started before there was a preemption"
        simulator, (first, second) = self.tight(max_bypasses=0)
        fresh = make_request("fresh", prompt_of(40, 700), max_tokens=20)
        simulator.add(first, second, fresh)
        simulator.run()
        order = [event.request_id for event in seen(simulator, Started)]
        assert order == ["a", "b", "b", "fresh"]
        assert_as_if_alone(first, second, fresh)

    def test_samples_are_preempted_and_resumed_separately(self):
        simulator = simulator_of(num_blocks=8)
        request = make_request("a", prompt_of(40), n=4, max_tokens=40)
        simulator.add(request)
        simulator.run()
        assert_as_if_alone(request)
        preempted = seen(simulator, Preempted)
        assert {event.sequence_id for event in preempted} == {1, 2, 3}, "never the first"
        starts = {event.time for event in seen(simulator, Started)}
        assert starts.isdisjoint(event.time for event in preempted), "in a step that preempts nobody starts"

    def test_what_was_generated_may_be_recomputed_in_chunks_even_without_chunked_prefill(self):
        simulator, requests = self.tight(enable_chunked_prefill=False, max_num_batched_tokens=41)
        simulator.add(*requests)
        simulator.run()
        assert_as_if_alone(*requests)


class TestAbort:
    @pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
    @pytest.mark.parametrize("n", [1, 3])
    def test_at_any_moment_everything_is_given_back(self, num_steps, n):
        simulator = simulator_of(max_num_batched_tokens=16)
        aborted, other = make_request("a", prompt_of(30), n=n), make_request("b", prompt_of(20))
        simulator.add(aborted, other)
        for _ in range(num_steps):
            simulator.step()
        assert simulator.scheduler.abort("a")
        assert not simulator.scheduler.abort("a")
        assert all(sequence.finish_reason == "abort" for sequence in aborted.sequences)
        simulator.run()
        assert_as_if_alone(other)
        assert simulator.cache.pool.num_owned == 0
        everybody = make_request("c", prompt_of(20), n=8)
        simulator.add(everybody)
        simulator.run()
        assert_as_if_alone(everybody)

    def test_while_a_step_is_under_way_its_tokens_are_dropped(self):
        simulator = simulator_of()
        aborted, other = make_request("a", prompt_of(30)), make_request("b", prompt_of(20, start=500))
        simulator.add(aborted, other)
        simulator.step()
        plan = simulator.plan()
        simulator.scheduler.abort("a")
        updates = simulator.carry_out(plan)
        assert [update.sequence.request for update in updates] == [other]
        assert aborted.sequences[0].num_output_tokens == 1
        simulator.run()
        assert_as_if_alone(other)

    def test_an_unknown_request_is_no_error(self):
        assert not simulator_of().scheduler.abort("nobody")


def test_a_token_that_could_not_be_drawn_ends_its_sequence_alone():
    simulator = simulator_of()
    broken, other = make_request("a", prompt_of(40)), make_request("b", prompt_of(40, start=500))
    simulator.add(broken, other)
    plan = simulator.plan()
    result = simulator.executor.execute(plan)
    poisoned = StepResult(result.step_id, [-1, result.sampled_token_ids[1]])
    updates = simulator.scheduler.update(plan, poisoned)
    assert [update.token_ids for update in updates] == [[], [result.sampled_token_ids[1]]]
    (sequence,) = broken.sequences
    assert (sequence.state, sequence.finish_reason) == (SequenceState.FINISHED, "error")
    assert "NaN" in sequence.stop_reason
    simulator.add(make_request("c", prompt_of(40)))
    assert simulator.step().num_scheduled_tokens == [1, 40], "what it computed is not trusted"
    simulator.run()
    assert_as_if_alone(other)


class TestPromptLogprobs:
    def reported(self, simulator, request):
        return [
            row.token_ids[0] for u in simulator.updates if u.sequence.request is request for row in u.prompt_logprobs
        ]

    def test_each_position_is_reported_once_over_all_chunks(self):
        simulator = simulator_of(max_num_batched_tokens=16)
        request = make_request("a", prompt_of(40), prompt_logprobs=1, n=2)
        simulator.add(request)
        assert [simulator.step().prompt_logprobs for _ in range(4)] == [[0], [0], [0], []]
        assert self.reported(simulator, request) == prompt_of(40)[1:]

    def test_cached_positions_are_computed_for_their_logprobs(self):
        simulator = simulator_of()
        simulator.add(make_request("a", prompt_of(40)))
        simulator.run()
        request = make_request("b", prompt_of(40), prompt_logprobs=1)
        simulator.add(request)
        assert simulator.step().num_scheduled_tokens == [40]
        assert self.reported(simulator, request) == prompt_of(40)[1:]

    def test_a_preempted_prompt_goes_on_where_its_report_ended(self):
        simulator = simulator_of(num_blocks=10, max_num_batched_tokens=4)
        first = make_request("a", prompt_of(20), max_tokens=100)
        second = make_request("b", prompt_of(100, start=300), max_tokens=5, prompt_logprobs=1)
        simulator.add(first, second)
        simulator.run()
        (preempted,) = seen(simulator, Preempted)
        assert 0 < preempted.num_lost_tokens < 100, "in the middle of its prompt, after most of its report"
        assert self.reported(simulator, second) == second.prompt_token_ids[1:]
        assert_as_if_alone(first, second)
