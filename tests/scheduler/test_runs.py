"""A step gives a sequence no token, one, or many; the sequence continues from those that it keeps."""

import pytest

from octavo.messages import StepResult
from octavo.observe.events import Finished, Preempted, Sampled
from octavo.scheduler.step import num_right, runs_of
from tests.fake_tokens import VOCAB_SIZE, generate_alone
from tests.scheduler.simulators import prompt_of, seen, simulator_of
from tests.simulate import make_request


def alone(request, index=0):
    return generate_alone(request.prompt_token_ids, request.max_output_tokens, request.seed, index)


def guess(sequence, num_right, num_wrong=0):
    """Guess a sequence's next tokens: `num_right` right guesses, then wrong ones."""
    request, num_drawn = sequence.request, sequence.num_output_tokens
    truth = generate_alone(request.prompt_token_ids, num_drawn + num_right + num_wrong, request.seed, sequence.index)
    guesses = truth[num_drawn:]
    sequence.spec_token_ids = guesses[:num_right] + [(one + 1) % VOCAB_SIZE for one in guesses[num_right:]]


def decoding(**params):
    """A simulator and a request that has its first token."""
    simulator, request = simulator_of(max_num_seqs=8), make_request("a", prompt_of(20), **params)
    simulator.add(request)
    simulator.step()
    return simulator, request


def num_generated(simulator):
    return sum(event.num_tokens for event in seen(simulator, Sampled))


class TestResults:
    def test_runs_are_cut_at_their_offsets(self):
        assert runs_of(StepResult(1, [5, 6, 7, 8], [0, 1, 1, 4])) == [[5], [], [6, 7, 8]]

    def test_without_offsets_each_run_is_one_token(self):
        assert runs_of(StepResult(1, [5, 6])) == [[5], [6]]
        assert runs_of(StepResult(1, [])) == []

    def test_right_guesses_are_counted_from_the_first(self):
        assert num_right([1, 2, 3], [1, 2, 9, 3]) == 2
        assert num_right([1, 2, 3], [1, 2]) == 2
        assert num_right([], [1]) == 0


class TestGuesses:
    @pytest.mark.parametrize(("right", "wrong"), [(0, 3), (2, 2), (4, 0)])
    def test_as_many_are_kept_as_were_right_and_one_more(self, right, wrong):
        simulator, request = decoding(max_tokens=12)
        (sequence,) = request.sequences
        guess(sequence, right, wrong)
        plan = simulator.plan()
        assert plan.num_scheduled_tokens == [1 + right + wrong]
        assert plan.num_logits == plan.num_draws == [1 + right + wrong]
        assert plan.spec_token_ids == {0: sequence.spec_token_ids}
        (update,) = simulator.carry_out(plan)
        assert update.token_ids == alone(request)[1 : right + 2]
        assert sequence.num_computed_tokens == sequence.num_tokens - 1 == 20 + 1 + right
        assert sequence.spec_token_ids == []
        simulator.run()
        assert sequence.output_token_ids == alone(request)
        assert num_generated(simulator) == 12

    def test_blocks_of_wrong_guesses_are_written_again_and_given_back_at_the_end(self):
        simulator, request = decoding(max_tokens=30)
        (sequence,) = request.sequences
        guess(sequence, 1, 25)
        simulator.step()
        assert simulator.cache.tables[sequence.sequence_id].num_blocks == 3, "20 + 1 + 26 tokens"
        for _ in range(12):
            assert simulator.step().block_writes == [], "what it has is enough"
        simulator.run()
        assert sequence.output_token_ids == alone(request)
        assert simulator.cache.pool.num_owned == 0

    def test_a_block_is_cached_when_its_tokens_are_known_not_when_they_are_guessed(self):
        simulator, request = decoding(max_tokens=30)
        (sequence,) = request.sequences
        guess(sequence, 12, 8)
        simulator.step()
        assert sequence.num_computed_tokens == 33
        assert len(simulator.cache.tree.nodes) == 1, "of two full ones the second waits for the next step"
        simulator.step()
        assert len(simulator.cache.tree.nodes) == 2

    def test_a_stop_token_in_the_middle_of_a_run_ends_it_there(self):
        request = make_request("a", prompt_of(20), max_tokens=12)
        stop = alone(request)[3]
        simulator, request = decoding(max_tokens=12, stop_token_ids=[stop])
        guess(request.sequences[0], 8)
        simulator.step()
        (sequence,) = request.sequences
        assert (sequence.finish_reason, sequence.stop_reason) == ("stop", stop)
        assert sequence.output_token_ids == alone(request)[:4]
        assert simulator.updates[-1].token_ids == alone(request)[1:4]
        assert num_generated(simulator) == 4
        assert simulator.cache.pool.num_owned == 0

    def test_nothing_is_guessed_beyond_max_tokens(self):
        simulator, request = decoding(max_tokens=4)
        guess(request.sequences[0], 9)
        assert simulator.step().num_draws == [3]
        assert request.sequences[0].output_token_ids == alone(request)
        assert request.sequences[0].finish_reason == "length"

    def test_nobody_is_preempted_for_a_guess(self):
        simulator = simulator_of(num_blocks=5, schedule_conservativeness=0)
        requests = [make_request(name, prompt_of(30, start), max_tokens=8) for name, start in (("a", 0), ("b", 500))]
        simulator.add(*requests)
        simulator.step()
        for request in requests:
            guess(request.sequences[0], 7)
        plan = simulator.step()
        assert plan.num_scheduled_tokens == [1, 1]
        assert plan.spec_token_ids == {}

    def test_the_budget_cuts_guesses(self):
        simulator = simulator_of(max_num_batched_tokens=24)
        first, second = make_request("a", prompt_of(10)), make_request("b", prompt_of(10, start=500))
        simulator.add(first, second)
        simulator.step()
        guess(first.sequences[0], 11)
        guess(second.sequences[0], 15)
        assert simulator.step().num_draws == [12, 12]

    def test_a_step_ahead_leaves_out_who_goes_on_from_an_unknown_place(self):
        simulator, request = decoding(max_tokens=20)
        other = make_request("b", prompt_of(20, start=500), max_tokens=20)
        simulator.add(other)
        simulator.step()
        guess(request.sequences[0], 2, 3)
        plan = simulator.plan()
        result = simulator.executor.execute(plan)
        ahead = simulator.plan()
        assert (plan.num_draws, ahead.num_draws) == ([6, 1], [1])
        simulator.take(plan, result)
        simulator.carry_out(ahead)
        simulator.run()
        assert [one.sequences[0].output_token_ids for one in (request, other)] == [alone(request), alone(other)]

    def test_preempted_in_between_it_draws_the_same_tokens(self):
        simulator, request = decoding(max_tokens=30)
        better = make_request("b", prompt_of(20, start=500), max_tokens=30)
        simulator.add(better)
        simulator.step()
        guess(request.sequences[0], 4, 4)
        plan = simulator.plan()
        result = simulator.executor.execute(plan)
        simulator.scheduler.fail("a kernel fell over")
        assert request.sequences[0].spec_token_ids == []
        assert runs_of(result)[0] == alone(request)[2:7]
        simulator.num_steps += 1
        simulator.run()
        assert [one.sequences[0].output_token_ids for one in (request, better)] == [alone(request), alone(better)]

    def test_each_sample_guesses_for_itself(self):
        simulator, request = decoding(max_tokens=12, n=3)
        for num_guesses, sequence in enumerate(request.sequences):
            guess(sequence, num_guesses, 2)
        plan = simulator.step()
        assert plan.num_draws == [3, 4, 5]
        simulator.run()
        assert [one.output_token_ids for one in request.sequences] == [alone(request, index) for index in range(3)]

    def test_each_drawn_token_has_its_log_probability(self):
        request = make_request("a", prompt_of(20), max_tokens=12)
        simulator, request = decoding(max_tokens=12, logprobs=1, stop_token_ids=[alone(request)[4]])
        guess(request.sequences[0], 8)
        simulator.step()
        rows = [row for update in simulator.updates for row in update.logprobs]
        assert [row.token_ids for row in rows] == [[token_id] for token_id in alone(request)[:5]]
        assert [row.logprobs for row in rows] == [[-20.0], [-21.0], [-22.0], [-23.0], [-24.0]]


class TestLengths:
    @pytest.mark.parametrize("is_ahead", [False, True], ids=["plain", "overlapped"])
    @pytest.mark.parametrize("lens", [[3], [0, 1], [0, 0, 5, 1]], ids=str)
    @pytest.mark.parametrize("windows", [(None,), (17, None)], ids=str)
    def test_runs_of_any_length_make_the_same_answers(self, lens, windows, is_ahead):
        turns = iter(lens * 200)
        simulator = simulator_of(windows=windows, max_num_seqs=8, num_blocks=60, run_len=lambda: next(turns))
        requests = [make_request(str(i), prompt_of(20 + 7 * i, 100 * i), n=1 + i % 2, max_tokens=25) for i in range(4)]
        simulator.add(*requests)
        if is_ahead:
            simulator.step_overlapped(60)
        simulator.run()
        for request in requests:
            assert [one.output_token_ids for one in request.sequences] == [
                alone(request, index) for index in range(len(request.sequences))
            ]
        assert num_generated(simulator) == sum(25 * len(request.sequences) for request in requests)
        assert simulator.cache.pool.num_owned == 0

    @pytest.mark.parametrize("has_prefix_cache", [False, True], ids=["no prefix cache", "prefix cache"])
    def test_who_got_nothing_starts_again_if_its_window_has_passed_the_place(self, has_prefix_cache):
        """Of two samples that share the block behind the window, the other one takes it in the step ahead."""
        lens = iter([1, 1, 0])
        simulator = simulator_of(windows=(17,), enable_prefix_caching=has_prefix_cache, run_len=lambda: next(lens, 1))
        request = make_request("a", prompt_of(31), n=2, max_tokens=6)
        simulator.add(request)
        simulator.step_overlapped(3)
        (preempted,) = seen(simulator, Preempted)
        assert (preempted.sequence_id, preempted.why) == (request.sequences[0].sequence_id, "rewound")
        simulator.run()
        assert [one.output_token_ids for one in request.sequences] == [alone(request, index) for index in range(2)]
        assert simulator.cache.pool.num_owned == 0

    def test_who_got_nothing_computes_its_last_token_again(self):
        lens = iter([1, 0, 1])
        simulator = simulator_of(run_len=lambda: next(lens))
        request = make_request("a", prompt_of(15), max_tokens=5)
        simulator.add(request)
        simulator.step()
        assert [simulator.step().num_computed_tokens for _ in range(2)] == [[15], [15]]

    def test_forced_tokens_are_computed_together(self):
        lens = iter([4, 1])
        simulator = simulator_of(run_len=lambda: next(lens))
        request = make_request("a", prompt_of(15), max_tokens=9)
        simulator.add(request)
        simulator.step()
        plan = simulator.step()
        assert (plan.num_computed_tokens, plan.num_scheduled_tokens, plan.num_draws) == ([15], [4], [1])
        assert request.sequences[0].output_token_ids == alone(request)[:5]

    def test_a_step_planned_before_forced_tokens_came_brings_nothing(self):
        lens = iter([4, 1])
        simulator = simulator_of(run_len=lambda: next(lens))
        request = make_request("a", prompt_of(15), max_tokens=9)
        simulator.add(request)
        plan = simulator.plan()
        result = simulator.executor.execute(plan)
        ahead = simulator.plan()
        assert (ahead.num_computed_tokens, ahead.num_scheduled_tokens) == ([15], [1])
        simulator.take(plan, result)
        assert simulator.carry_out(ahead) == []
        plan = simulator.step()
        assert (plan.num_computed_tokens, plan.num_scheduled_tokens) == ([16], [3])
        assert request.sequences[0].output_token_ids == alone(request)[:5]

    @pytest.mark.parametrize("budget", [100, 7])
    @pytest.mark.parametrize("is_ahead", [False, True], ids=["plain", "overlapped"])
    def test_who_wants_no_token_ends_once_its_prompt_is_computed(self, budget, is_ahead):
        simulator = simulator_of(max_num_batched_tokens=budget)
        request = make_request("a", prompt_of(22), max_tokens=0)
        other = make_request("b", prompt_of(22, start=500), max_tokens=3)
        simulator.add(request, other)
        if is_ahead:
            simulator.step_overlapped(6)
        simulator.run()
        (sequence,) = request.sequences
        assert (sequence.output_token_ids, sequence.finish_reason) == ([], "stop")
        (finished,) = [event for event in seen(simulator, Finished) if event.sequence_id == sequence.sequence_id]
        assert finished.time == -(-22 // budget) - 1, "not before its last tokens' step is done"
        assert [update.token_ids for update in simulator.updates if update.sequence is sequence] == [[]]
        assert other.sequences[0].output_token_ids == alone(other)

    def test_a_failed_draw_ends_its_sequence_behind_what_came_before(self):
        simulator, request = decoding(max_tokens=12)
        guess(request.sequences[0], 2)
        plan = simulator.plan()
        truth = alone(request)
        (update,) = simulator.take(plan, StepResult(plan.step_id, [truth[1], -1], [0, 2]))
        assert update.token_ids == [truth[1]]
        assert request.sequences[0].finish_reason == "error"
        assert len(simulator.cache.tree.nodes) == 0, "what it computed is not trusted"
