"""A plan's draws in a batch, which of their tokens are kept, and that guesses change no answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.messages import ForkRow, LogprobRow, StepPlan
from octavo.outputs import RequestOutput
from octavo.scheduler.step import runs_of
from octavo.worker.rows import RequestStates
from octavo.worker.runner import Draws
from tests.conftest import TinyFolder
from tests.worker.guessing import guess_next_tokens

#: a decode, three guesses, a chunk in the middle of a prompt, a prompt that forks, and a prompt that draws nothing
PLAN = StepPlan(
    1,
    fork_rows=[ForkRow(7, 3, 1)],
    rows=[5, 1, 2, 3, 4],
    num_computed_tokens=[9, 19, 0, 0, 0],
    num_scheduled_tokens=[1, 4, 6, 2, 3],
    num_logits=[1, 4, 0, 1, 1],
    num_draws=[1, 4, 0, 1, 0, 1],
    spec_token_ids={1: [31, 32, 33]},
)


def states_of() -> RequestStates:
    states = RequestStates(max_num_seqs=8, max_model_len=64, block_size=16, num_groups=1)
    for row, num_tokens in {5: 10, 1: 20, 2: 30, 3: 2, 4: 3, 7: 2}.items():
        states.num_tokens[row] = num_tokens
    return states


def test_each_run_draws_from_the_last_of_its_rows_of_logits() -> None:
    draws = Draws.of(PLAN, states_of().gather(PLAN))
    assert draws.wanted.tolist() == [0, 1, 2, 3, 4, 12, 15]
    assert draws.rows.tolist() == [5, 1, 1, 1, 1, 3, 7]
    assert draws.positions.tolist() == [10, 20, 21, 22, 23, 2, 2]
    assert draws.logits_rows.tolist() == [0, 1, 2, 3, 4, 5, 5], "a fork reads its parent's"


def test_guesses_stand_behind_their_rows_tokens() -> None:
    batch = states_of().gather(PLAN)
    assert batch.input_ids[1:5].tolist() == [0, 31, 32, 33]
    assert batch.decode_threshold == 4, "a token and three guesses are a decode, where kernels take them"


def test_many_draws_are_made_a_few_at_a_time() -> None:
    draws = Draws.of(PLAN, states_of().gather(PLAN))
    lots = list(draws.tiles(3))
    assert [start for start, _ in lots] == [0, 3, 6]
    assert [lot.rows.tolist() for _, lot in lots] == [[5, 1, 1], [1, 1, 3], [7]]
    assert [lot.wanted[lot.logits_rows].tolist() for _, lot in lots] == [[0, 1, 2], [3, 4, 12], [12]]


@pytest.mark.parametrize(
    ("drawn", "kept"),
    [([31, 32, 33, 9], 4), ([31, 32, 9, 33], 3), ([9, 32, 33, 9], 1), ([-1, 32, 33, 9], 1), ([31, -1, 33, 9], 2)],
)
def test_guesses_are_kept_up_to_the_first_that_is_wrong(drawn: list[int], kept: int) -> None:
    states = states_of()
    draws, token_ids = Draws.of(PLAN, states.gather(PLAN)), np.array([8, *drawn, 6, 7], np.int32)
    rows = {draw: LogprobRow([int(token_id)], [-1.0], 1) for draw, token_id in enumerate(token_ids)}
    result = draws.result(1, token_ids, draws.kept(PLAN, token_ids, states.num_tokens), rows, {})
    assert runs_of(result) == [[8], drawn[:kept], [], [6], [], [7]]
    assert {run: [row.token_ids[0] for row in rows] for run, rows in result.logprobs.items()} == {
        run: tokens for run, tokens in enumerate(runs_of(result)) if tokens
    }


def test_a_row_that_has_got_other_tokens_keeps_nothing() -> None:
    states = states_of()
    draws, token_ids = Draws.of(PLAN, states.gather(PLAN)), np.array([8, 31, 32, 33, 9, 6, 7], np.int32)
    states.num_tokens[[5, 1]] += 2
    kept = draws.kept(PLAN, token_ids, states.num_tokens)
    assert runs_of(draws.result(1, token_ids, kept, {}, {})) == [[], [], [], [6], [], [7]]


PROMPTS = [np.random.default_rng(length).integers(3, 160, length).tolist() for length in (1, 9, 17, 33)]


def params(index: int) -> SamplingParams:
    return SamplingParams(
        n=1 + index % 2, temperature=(0.0, 1.0)[index % 2], seed=index, max_tokens=18 + index, min_tokens=9,
        stop_token_ids=range(3, 9), presence_penalty=0.4 * (index % 3), logprobs=1 if index > 1 else None,
    )  # fmt: skip


def generate(llm: LLM) -> list[RequestOutput]:
    return llm.generate(PROMPTS, [params(index) for index in range(len(PROMPTS))], use_tqdm=False)


def assert_same_logprobs(rows: Any, expected: Any) -> None:
    assert (rows is None) == (expected is None)
    for row, other in zip(rows or (), expected or (), strict=True):
        assert list(row) == list(other)
        assert [one.rank for one in row.values()] == [one.rank for one in other.values()]
        assert [one.logprob for one in row.values()] == pytest.approx([one.logprob for one in other.values()], abs=1e-4)


@pytest.mark.parametrize("is_ahead", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_guesses_change_no_answer_of_a_model(
    name: str, is_ahead: bool, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"dtype": "float32", "skip_tokenizer_init": True, "max_model_len": 96, "max_num_seqs": 6}
    with LLM(str(tiny_folder(name)), async_scheduling=is_ahead, check_invariants=True, **options) as llm:
        plain = generate(llm)
        computed = guess_next_tokens(monkeypatch, plain)
        guessed = generate(llm)
        assert max(computed) > 8, "several guesses of several sequences in one step"
        assert llm.stats().num_used_blocks == 0
    for one, other in zip(guessed, plain, strict=True):
        for answer, expected in zip(one.outputs, other.outputs, strict=True):
            assert answer.token_ids == expected.token_ids
            assert answer.finish_reason == expected.finish_reason
            assert_same_logprobs(answer.logprobs, expected.logprobs)
