"""A step that was planned before a row's end was known computes nothing of that row, and all of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.messages import ForkRow, LogprobRow, NewRow, StepPlan, StepResult
from octavo.worker.ended_rows import EndedRows
from octavo.worker.rows import RequestStates
from octavo.worker.runner import HostRunner
from tests.conftest import TinyFolder
from tests.engine.test_overlap import PROMPTS

END, OTHER_END = 7, 8


class Rows:
    """Rows that draw what a test says. computed: the rows of each step."""

    def __init__(self, *rows: int, min_tokens: int = 0) -> None:
        self.states = RequestStates(max_num_seqs=8, max_model_len=64, block_size=16, num_groups=1)
        self.ended, self.computed = EndedRows(self.states), list[list[int]]()
        self.enter([self.new(row, min_tokens) for row in rows])

    def new(self, row: int, min_tokens: int = 0) -> NewRow:
        params = SamplingParams(min_tokens=min_tokens, max_tokens=20)
        return NewRow(row, [3, END], 2, params, seed=0, sample_index=0, stop_token_ids=frozenset({END, OTHER_END}))

    def enter(self, rows: Sequence[NewRow] = (), forks: Sequence[ForkRow] = ()) -> None:
        for new in rows:
            self.states.enter(new)
        for fork in forks:
            self.states.fork(fork)
        self.ended.enter(StepPlan(0, new_rows=list(rows), fork_rows=list(forks)))

    def step(self, drawn: dict[int, int], **more: Any) -> StepResult:
        """A step of decodes of these rows. drawn: by row; nothing for those that are left out."""
        rows, ones = list(drawn), [1] * len(drawn)
        columns = dict.fromkeys(("num_scheduled_tokens", "num_logits", "num_draws"), ones)
        plan = StepPlan(1, rows=rows, num_computed_tokens=[*range(len(rows))], **columns, **more)

        def compute(plan: StepPlan) -> StepResult:
            self.computed.append(plan.rows)
            assert plan.num_computed_tokens == [rows.index(row) for row in plan.rows], "each entry has its own columns"
            self.states.num_tokens[plan.rows] += 1
            logprobs = {run: [LogprobRow([drawn[row]], [-float(row)], 1)] for run, row in enumerate(plan.rows)}
            return StepResult(plan.step_id, [drawn[row] for row in plan.rows], logprobs=logprobs)

        return self.ended.run(plan, compute)


def test_an_ended_row_is_left_out_of_the_next_step_alone() -> None:
    rows = Rows(0, 1, 2)
    rows.step({0: 5, 1: END, 2: 6})
    result = rows.step({0: 4, 1: 4, 2: OTHER_END})
    assert (result.sampled_token_ids, result.offsets) == ([4, OTHER_END], [0, 1, 1, 2])
    assert {run: row[0].logprobs for run, row in result.logprobs.items()} == {0: [0.0], 2: [-2.0]}
    assert rows.step({2: 4}) == StepResult(1, [], offsets=[0, 0])
    rows.step({1: 4, 2: 4})
    assert rows.computed == [[0, 1, 2], [0, 2], [1, 2]], "a step of nothing but ended rows does not run"


def test_only_a_stop_token_that_counts_ends_a_row() -> None:
    rows = Rows(0, 1, min_tokens=2)
    for _ in range(3):
        rows.step({0: END, 1: 5})
    assert rows.computed == [[0, 1], [0, 1], [1]], "the second token is the first that counts"


def test_forks_end_as_their_parents_do_and_new_sequences_begin() -> None:
    rows = Rows(0, 1)
    rows.enter(forks=[ForkRow(3, 0, 1)])
    rows.step({0: 4, 1: END, 3: END})
    rows.enter([rows.new(1)])
    rows.step({0: 4, 1: 4, 3: 4})
    assert rows.computed[1] == [0, 1]


@pytest.mark.parametrize("more", [{"prompt_logprobs": [0]}, {"candidates": {0: 2}}, {"spec_token_ids": {0: []}}])
def test_a_plan_with_more_than_decodes_is_computed_whole(more: dict[str, Any]) -> None:
    rows = Rows(0, 1)
    rows.step({0: 4, 1: END})
    rows.step({0: 4, 1: 4}, **more)
    assert rows.computed[1] == [0, 1]


def test_an_engine_that_plans_ahead_computes_no_more_than_one_that_does_not(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    compute = HostRunner._computed

    def counting(runner: HostRunner, plan: StepPlan) -> StepResult:
        computed.append(plan.num_tokens)
        return compute(runner, plan)

    monkeypatch.setattr(HostRunner, "_computed", counting)
    params = [
        SamplingParams(n=1 + index % 3, seed=index, max_tokens=40, min_tokens=index % 2, stop_token_ids=range(3, 40))
        for index in range(len(PROMPTS))
    ]
    found = []
    options: dict[str, Any] = {"skip_tokenizer_init": True, "max_model_len": 96, "enable_prefix_caching": False}
    for is_ahead in (False, True):
        with LLM(str(tiny_folder("llama")), async_scheduling=is_ahead, **options) as llm:
            outputs = llm.generate(PROMPTS, params, use_tqdm=False)
        answers = [(one.token_ids, one.finish_reason) for output in outputs for one in output.outputs]
        assert sum(reason == "stop" for _, reason in answers) > 5
        found.append((answers, sum(computed)))
        computed.clear()
    assert found[0] == found[1]
