"""Plans and results between an engine and its ranks are what they were, with everything that they can have."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo import SamplingParams
from octavo.executor import packing
from octavo.executor.packing import NextStep, packed, unpacked
from octavo.messages import AdapterLoad, BlockWrite, ForkRow, LogprobRow, NewRow, StepPlan, StepResult
from octavo.structured_outputs import Thoughts

PARAMS = SamplingParams(temperature=0.5, seed=2**62, stop_token_ids=[7], logit_bias={3: -1.5})
THOUGHTS = Thoughts(begin=(1,), end=(2, 3), closing=(4,), is_begun=True, budget=9)
ROWS = [
    NewRow(3, [5, 6], 2, PARAMS, 2**64 - 1, 1, frozenset({9}), ((1, 2), (3,)), "root ::= x", THOUGHTS, True, 1, 4),
    NewRow(4, [5], 1, PARAMS.clone(), 0, 0),
    NewRow(5, [], 0, SamplingParams(), 0, 0),
]
PLAN = StepPlan(
    step_id=2**40,
    freed_rows=[1],
    new_rows=ROWS,
    block_writes=[BlockWrite(3, 0, 0, [8, 9])],
    fork_rows=[ForkRow(6, 3, 2)],
    copies=[(8, 9)],
    rows=[3, 4, 5],
    num_computed_tokens=[0, 1, 2],
    num_scheduled_tokens=[2, 1, 1],
    num_logits=[1, 1, 2],
    num_draws=[1, 0, 2, 1],
    spec_token_ids={2: [4]},
    prompt_logprobs=[0],
    beam_rows=[1],
    beam_parents=[2],
    beam_token_ids=[3],
    candidates={1: -1},
    drawn=(StepResult(1, [2]),),
    adapters=[AdapterLoad(0, 1)],
)
RESULT = StepResult(
    step_id=1,
    sampled_token_ids=[4, -1],
    offsets=[0, 1, 2],
    logprobs={0: [LogprobRow([1, 2], [-0.5, float("-inf")], 1, [3])]},
    prompt_logprobs={1: []},
    candidates={0: ([1], [-2.5])},
    num_forced={0: 1},
    pooled={1: b"\x00\xff"},
    faults={1: "ValueError: no"},
)


NEXT = NextStep(PLAN, asked=2**40 - 1)


@pytest.mark.parametrize("message", [NEXT, NextStep(StepPlan(0)), RESULT, StepResult(0, []), 5, "any", ValueError("x")])
def test_a_message_is_what_it_was(message: object) -> None:
    came = unpacked(packed(message))
    assert type(came) is type(message)
    assert repr(came) == repr(message)
    assert unpacked(pickle.dumps(message)).__class__ is type(message), "a pickle is known as one"


def test_every_field_is_tried() -> None:
    for message in (NEXT, PLAN, RESULT, ROWS[0]):
        assert all(getattr(message, name) for name in message.__dataclass_fields__)


def test_equal_parameters_of_neighbours_travel_once() -> None:
    came = unpacked(packed(NEXT)).plan
    assert came.new_rows[0].sampling_params is came.new_rows[1].sampling_params
    one, nine = (len(packed(NextStep(StepPlan(0, new_rows=ROWS[:1] * number)))) for number in (1, 9))
    assert nine < one + 9 * 80


def test_numbers_of_numpy_are_numbers() -> None:
    row = LogprobRow([np.int64(3)], [np.float32(-0.5)], np.int32(1))  # type: ignore[list-item, arg-type]
    result = StepResult(np.int64(7), np.array([1, 2]), logprobs={0: [row]})  # type: ignore[arg-type]
    assert unpacked(packed(result)) == StepResult(7, [1, 2], logprobs={0: [LogprobRow([3], [-0.5], 1)]})


@given(st.lists(st.integers(0, 2**31), max_size=20), st.lists(st.integers(-2, 2**31), max_size=300))
def test_any_numbers(rows: list[int], tokens: list[int]) -> None:
    writes = [BlockWrite(row, 0, row % 7, tokens[:row]) for row in range(len(rows) % 5)]
    plan = StepPlan(len(rows), rows=rows, num_computed_tokens=tokens[: len(rows)], block_writes=writes)
    assert unpacked(packed(NextStep(plan))) == NextStep(plan)
    result = StepResult(len(rows), tokens)
    assert unpacked(packed(result)) == result


def test_kinds_are_told_by_their_first_byte() -> None:
    assert packed(NEXT)[0] == packing._PLAN
    assert packed(RESULT)[0] not in (packing._PLAN, packing._PICKLE)
