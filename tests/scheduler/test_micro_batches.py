"""A pipeline's steps: each sequence is in one of them, and gets the tokens that it would get from steps one by one."""

from __future__ import annotations

import random

import pytest

from octavo.config import SchedulerConfig
from octavo.observe.events import Preempted
from octavo.request import Request
from tests.simulate import Simulator, make_request


def requests(seed: int) -> list[Request]:
    """With samples, beams, stops, priorities and beginnings in common."""
    draw = random.Random(seed)
    made = []
    for index in range(draw.randrange(2, 9)):
        prompt = [7] * draw.randrange(1, 20) + [draw.randrange(3) for _ in range(draw.randrange(4))]
        params: dict[str, int | bool] = {"n": draw.choice([1, 1, 1, 3])}
        if draw.random() < 0.2:
            params = {"n": 2, "use_beam_search": True, "temperature": 0}
        stops = draw.sample(range(100), 5) if draw.random() < 0.3 else ()
        given = {"seed": index, "priority": draw.randrange(2), "max_tokens": draw.randrange(1, 28)}
        made.append(make_request(str(index), prompt, eos_token_ids=stops, **given, **params))
    return made


def answers(seed: int, num_stages: int, num_blocks: int) -> tuple[list[list[list[int]]], Simulator]:
    config = SchedulerConfig(
        max_num_seqs=6, max_num_batched_tokens=16, scheduling_policy="priority", schedule_conservativeness=0.0
    )
    simulator = Simulator(
        num_blocks=num_blocks, block_size=4, max_model_len=64, config=config, checks=True, num_stages=num_stages
    )
    given = requests(seed)
    simulator.add(*given)
    simulator.run_pipelined()
    return [[one.output_token_ids for one in request.sequences] for request in given], simulator


@pytest.mark.parametrize("num_stages", [2, 4])
def test_tokens_are_those_of_one_stage(num_stages: int) -> None:
    """Also of sequences that were preempted, and went on, before a result of theirs came."""
    num_preempted = 0
    for seed in range(12):
        expected, _ = answers(seed, 1, 60)
        found, simulator = answers(seed, num_stages, 20)
        assert found == expected, f"seed {seed}"
        num_preempted += sum(isinstance(event, Preempted) for event in simulator.events)
    assert num_preempted > 3


def test_a_sequence_is_in_one_step_and_a_step_has_its_part() -> None:
    simulator = Simulator(num_stages=3, checks=True)
    simulator.add(*(make_request(str(index), [index + 1] * 5, max_tokens=30) for index in range(9)))
    first = simulator.plan()
    assert len(first.rows) == 9  # prompts start at once
    assert not simulator.plan().rows
    assert simulator.scheduler.awaits_all
    simulator.carry_out(first)
    plans = [simulator.plan() for _ in range(4)]
    assert [sorted(plan.rows) for plan in plans] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], []]
    simulator.carry_out(plans[0])
    assert sorted(simulator.plan().rows) == [0, 1, 2]


def test_chunks_of_a_prompt_follow_each_other() -> None:
    simulator = Simulator(num_stages=3, checks=True, config=SchedulerConfig(max_num_batched_tokens=8))
    simulator.add(make_request("a", list(range(20)), max_tokens=4))
    assert [simulator.plan().num_scheduled_tokens for _ in range(4)] == [[8], [8], [4], []]
