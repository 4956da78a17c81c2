"""Beam search as the scheduler does it: its choices, its blocks under pressure, and all that may interrupt it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError
from octavo.messages import StepPlan, StepResult
from octavo.observe.events import Finished, Forked, Preempted, Unforked
from octavo.observe.lives import RequestLives
from octavo.request import Request, Sequence
from octavo.scheduler.step import NO_TOKEN_ENDING
from tests.fake_tokens import EMPTY_PREFIX, best_tokens, extend_prefix, generate_alone
from tests.simulate import Arrival, Simulator, make_request

WIDTH, MAX_TOKENS = 3, 12
STOPS = [3, 4, 11, 20]
#: numbers of blocks that preempt, by the cache groups' windows
TIGHT = {(None,): (23, 28), (None, 6): (38, 44), (9,): (14, 18)}


def beam_request(request_id: str, prompt: list[int], *, width: int = WIDTH, n: int = 2, **params: Any) -> Request:
    params = {"max_tokens": MAX_TOKENS, "stop_token_ids": STOPS} | params
    return make_request(request_id, prompt, use_beam_search=True, best_of=width, n=n, **params)


def searched(
    prompt: list[int],
    width: int,
    n: int,
    *,
    max_tokens: int = MAX_TOKENS,
    length_penalty: float = 1.0,
    early_stopping: Any = False,
    num_beam_groups: int = 1,
    diversity_penalty: float = 0.0,
) -> list[list[int]]:
    """The n best answers, by a search that keeps every beam as a list of tokens. Groups search one after another."""
    size = width // num_beam_groups
    running: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(num_beam_groups)]
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(num_beam_groups)]
    over: set[int] = set()
    for length in range(1, max_tokens + 1):
        chosen: list[int] = []
        for group in {*range(num_beam_groups)} - over:
            ways = []
            for total, tokens in running[group]:
                prefix = EMPTY_PREFIX
                for token_id in prompt + tokens:
                    prefix = extend_prefix(prefix, token_id)
                for token_id, logprob in zip(*best_tokens(prefix, 3 * width + len(STOPS)), strict=True):
                    score = total + logprob - diversity_penalty * chosen.count(token_id)
                    ways.append((score, [*tokens, token_id]))
            ways.sort(key=lambda way: -way[0])
            ends = [way for way in ways[:size] if way[1][-1] in STOPS or length == max_tokens]
            done = finished[group] + [(total / length**length_penalty, tokens) for total, tokens in ends]
            finished[group] = sorted(done, key=lambda way: -way[0])[:size]
            running[group] = [way for way in ways if way[1][-1] not in STOPS][:size]
            chosen += [tokens[-1] for _, tokens in running[group]]
            best_len = max_tokens if early_stopping == "never" and length_penalty > 0 else length
            if len(finished[group]) == size and (
                early_stopping is True or running[group][0][0] / best_len**length_penalty <= finished[group][-1][0]
            ):
                over.add(group)
        if len(over) == num_beam_groups:
            break
    best = sorted([way for group in finished for way in group], key=lambda way: -way[0])
    return [tokens for _, tokens in best[:n]]


def answers(simulator: Simulator, request_id: str) -> list[list[int]]:
    found = {u.sequence.index: u.token_ids for u in simulator.updates if u.sequence.request.request_id == request_id}
    return [found[index] for index in sorted(found)]


def prompt_of(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(100, 900) for _ in range(length)]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0, 2.5])
def test_the_answers_are_those_of_a_plain_search(early_stopping: Any, length_penalty: float) -> None:
    params: dict[str, Any] = {"early_stopping": early_stopping, "length_penalty": length_penalty}
    for seed, width in enumerate([1, 2, 3, 5, 8] * 2):
        simulator = Simulator(checks=True, block_size=4)
        prompt, n = prompt_of(1 + seed % 9, seed), 1 + seed % width
        simulator.run([Arrival(0, beam_request("a", prompt, width=width, n=n, **params))])
        assert answers(simulator, "a") == searched(prompt, width, n, **params)
        assert simulator.cache.pool.num_owned == 0


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("penalty", [1e-6, 0.4, 3.0, 100.0])
def test_the_answers_of_groups_are_those_of_a_plain_diverse_search(early_stopping: Any, penalty: float) -> None:
    for seed, (width, num) in enumerate([(2, 2), (4, 2), (6, 3), (6, 2), (5, 5), (8, 4)]):
        params: dict[str, Any] = {
            "early_stopping": early_stopping, "length_penalty": [1.0, 0.0, -0.5][seed % 3], "num_beam_groups": num,
            "diversity_penalty": penalty,
        }  # fmt: skip
        simulator = Simulator(checks=True, block_size=4)
        prompt, n = prompt_of(1 + seed % 9, seed), 1 + seed % width
        simulator.run([Arrival(0, beam_request("a", prompt, width=width, n=n, **params))])
        assert answers(simulator, "a") == searched(prompt, width, n, **params)
        assert simulator.cache.pool.num_owned == 0


def test_blocks_are_shared_and_no_prefix_is_computed_again() -> None:
    simulator = Simulator(checks=True, block_size=4)
    simulator.add(beam_request("a", prompt_of(42, 1), width=6, n=6, stop_token_ids=[]))
    computed = 0
    while simulator.scheduler.has_unfinished:
        plan = simulator.plan()
        computed += plan.num_tokens
        assert simulator.cache.pool.num_owned <= 10 + 6 * 4  # the prompt's full blocks once
        simulator.carry_out(plan)
    assert computed == 42 + 6 * (MAX_TOKENS - 1)
    assert any(isinstance(event, Unforked) for event in simulator.events)


@pytest.mark.parametrize("windows", [(None,), (None, 6), (9,)])
@pytest.mark.parametrize("caches", [True, False])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_mixed_requests_in_tight_memory_get_their_own_answers(
    windows: tuple[int | None, ...], caches: bool, policy: Any
) -> None:
    """Preempted, aborted and restarted beams beside ordinary requests, planned one step ahead or not."""
    num_preempted = 0
    for seed in range(6):
        rng = random.Random(seed)
        config = SchedulerConfig(
            max_num_seqs=rng.choice([6, 9, 16]), max_num_batched_tokens=rng.choice([6, 16, 64]),
            scheduling_policy=policy, schedule_conservativeness=0.0,
        )  # fmt: skip
        simulator = Simulator(
            num_blocks=rng.randrange(*TIGHT[windows]), block_size=4, windows=windows, config=config,
            enable_prefix_caching=caches, checks=True,
        )  # fmt: skip
        expected: dict[str, list[list[int]]] = {}
        arrivals, aborted = [], set()
        for index in range(9):
            name, prompt = f"r{index}", prompt_of(rng.randrange(1, 14), rng.randrange(3))
            priority = rng.randrange(3)
            if rng.random() < 0.6:
                width = rng.randrange(1, 5)
                n = rng.randrange(1, width + 1)
                groups: dict[str, Any] = {}
                if width > 1 and rng.random() < 0.4:
                    groups = {"num_beam_groups": width, "diversity_penalty": 0.7}
                request = beam_request(name, prompt, width=width, n=n, priority=priority, **groups)
                expected[name] = searched(prompt, width, n, **groups)
            else:
                request = make_request(name, prompt, n=2, seed=index, max_tokens=9, priority=priority)
                expected[name] = [generate_alone(prompt, 9, index, sample) for sample in range(2)]
            arrivals.append((rng.randrange(6), request))
        overlaps = rng.random() < 0.5
        for step in range(2000):
            for _, request in [one for one in arrivals if one[0] == step]:
                simulator.add(request)
            if rng.random() < 0.02:
                name = f"r{rng.randrange(9)}"
                aborted |= {name} if simulator.scheduler.abort(name) else set()
            simulator.step_overlapped(2) if overlaps else simulator.step()
            if step > 12 and not simulator.scheduler.has_unfinished:
                break
        assert not simulator.scheduler.has_unfinished
        simulator.step()
        assert simulator.cache.pool.num_owned == 0
        assert not simulator.executor.rows
        assert simulator.scheduler.num_running == 0
        grown: dict[tuple[str, int], list[int]] = {}
        for update in simulator.updates:
            key = update.sequence.request.request_id, update.sequence.index
            grown.setdefault(key, []).extend(update.token_ids)
        for name, wanted in expected.items():
            if name not in aborted:
                assert [grown[name, index] for index in range(len(wanted))] == wanted, (seed, name)
        lives = RequestLives()
        for event in simulator.events:
            lives.follow(event)
            num_preempted += isinstance(event, Preempted)
        assert not lives.live
    assert num_preempted > 0


def test_a_failed_step_is_narrowed_down_to_the_request_at_fault() -> None:
    simulator = Simulator(checks=True, block_size=4)
    prompts = {name: prompt_of(5, seed) for seed, name in enumerate("abc")}
    simulator.add(*(beam_request(name, prompt) for name, prompt in prompts.items()))
    ended: list[Sequence] = []
    for _ in range(300):
        plan = simulator.plan()
        rows = {one.row for one in simulator.scheduler.sequences if one.request.request_id == "b"}
        if rows & set(plan.rows) and any(one.num_output_tokens > 3 for one in simulator.scheduler.sequences):
            ended += fail(simulator, plan)
        else:
            simulator.carry_out(plan)
        if not simulator.scheduler.has_unfinished:
            break
    assert [(one.request.request_id, one.finish_reason) for one in ended] == [("b", "error")]
    for name in "ac":
        assert answers(simulator, name) == searched(prompts[name], WIDTH, 2)
    assert simulator.cache.pool.num_owned == 0


def fail(simulator: Simulator, plan: StepPlan) -> list[Sequence]:
    """The worker keeps its rows, and computes nothing -> those who end."""
    columns = "rows", "num_computed_tokens", "num_scheduled_tokens", "num_logits"
    nothing: dict[str, Any] = {name: [] for name in columns} | {"candidates": {}}
    simulator.executor.execute(replace(plan, num_draws=[], **nothing))
    return [update.sequence for update in simulator.scheduler.fail("it broke")]


def test_a_search_that_runs_alone_is_not_preempted_for_those_who_wait() -> None:
    """It would begin again, and never get past the place of the fault."""
    config = SchedulerConfig(schedule_conservativeness=0)
    simulator = Simulator(num_blocks=10, block_size=4, config=config, checks=True)
    other, search = make_request("a", prompt_of(12, 0)), beam_request("b", prompt_of(5, 1), width=2, n=1)
    simulator.add(other, search)
    for _ in range(6):
        simulator.step()
    assert fail(simulator, simulator.plan()) == []
    simulator.run(max_steps=200)
    assert other.sequences[0].output_token_ids == generate_alone(other.prompt_token_ids, 16, 0, 0)
    assert answers(simulator, "b") == searched(prompt_of(5, 1), 2, 1)


def test_nan_ends_the_request_with_an_error() -> None:
    simulator = Simulator(checks=True, block_size=4)
    simulator.add(beam_request("a", prompt_of(5, 0)), beam_request("b", prompt_of(5, 1)))
    for _ in range(3):
        simulator.step()
    plan = simulator.plan()
    result = simulator.executor.execute(plan)
    own = {one.row for one in simulator.scheduler.sequences if one.request.request_id == "a"}
    nan = {entry: ([0], [float("nan")]) for entry in result.candidates if plan.rows[entry] in own}
    broken = StepResult(result.step_id, [], result.offsets, candidates=result.candidates | nan)
    (update,) = simulator.take(plan, broken)
    assert (update.sequence.finish_reason, update.sequence.stop_reason) == NO_TOKEN_ENDING
    simulator.run()
    assert answers(simulator, "b") == searched(prompt_of(5, 1), WIDTH, 2)
    assert simulator.cache.pool.num_owned == 0


def test_log_probabilities_and_ends_come_with_the_answers() -> None:
    simulator = Simulator(checks=True, block_size=4)
    request = beam_request("a", prompt_of(5, 0), n=3, logprobs=2)
    simulator.run([Arrival(0, request)])
    for update in simulator.updates:
        assert [row.token_ids[0] for row in update.logprobs] == update.token_ids
        assert all(len(row.token_ids) == 3 and row.logprobs[1] >= row.logprobs[0] for row in update.logprobs)
        last = update.token_ids[-1]
        ends_with_stop = last in STOPS
        assert update.sequence.finish_reason == ("stop" if ends_with_stop else "length")
        assert update.sequence.stop_reason == (last if ends_with_stop else None)
    ends = [event for event in simulator.events if isinstance(event, Finished)]
    assert len(ends) == 3
    assert any(isinstance(event, Forked) for event in simulator.events)


def test_a_search_that_could_never_fit_is_refused() -> None:
    small = Simulator(num_blocks=20, block_size=4)
    with pytest.raises(InvalidRequestError, match="of each of 8 beams, the pool has 19: lower max_tokens"):
        small.add(beam_request("a", prompt_of(8, 0), width=8))
    few = Simulator(config=SchedulerConfig(max_num_batched_tokens=4))
    with pytest.raises(InvalidRequestError, match="has 5 beams, but all of them must fit one step of 4 tokens"):
        few.add(beam_request("a", prompt_of(8, 0), width=5))
