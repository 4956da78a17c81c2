"""A host's rank in a process of its own gets a step while it runs the last one, and answers are an inline worker's."""

from __future__ import annotations

import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import pytest

from octavo import LLM, SamplingParams, StructuredOutputsParams
from octavo.executor.packing import NextStep, packed, unpacked
from octavo.executor.rank_process import _serve
from octavo.messages import PendingStep, StepPlan, StepResult
from octavo.observe.events import EngineStarted, Scheduled, StepDone
from octavo.observe.flight_log import read_log
from octavo.simulator.replay import replay
from octavo.worker.runner import DoneStep
from tests.conftest import TinyFolder
from tests.engine.test_overlap import engine
from tests.executor.conftest import asked_along
from tests.server.live import until
from tests.structured.spelling_model import spelling_model

PROMPTS = [[5, 9, 12], [7] * 20, [44, 45], list(range(5, 38)), [60, 61], [90], [30] * 17]


class WatchedExecutor:
    """Its steps are done at once. answered: before each step, whether the parent could read an answer."""

    def __init__(self, parents_end: Connection) -> None:
        self._parents_end = parents_end
        self.answered: list[bool] = []

    def submit(self, plan: StepPlan) -> PendingStep:
        self.answered.append(self._parents_end.poll())
        return DoneStep(StepResult(plan.step_id, [plan.step_id]))


@pytest.mark.parametrize("reports", [True, False])
def test_a_result_that_is_asked_for_along_with_a_plan_is_sent_before_that_runs(reports: bool) -> None:
    ours, theirs = Pipe()
    executor = WatchedExecutor(ours)
    messages: list[Any] = [NextStep(StepPlan(1)), NextStep(StepPlan(2)), NextStep(StepPlan(3), asked=2), 3]
    for message in messages:
        ours.send_bytes(packed(message))
    rank = threading.Thread(target=_serve, args=(cast(Any, executor), theirs), kwargs={"reports": reports})
    rank.start()
    until(lambda: len(executor.answered) == 3)
    answers = [unpacked(ours.recv_bytes()) for _ in range(2)]
    ours.close()
    rank.join(5)
    theirs.close()
    assert answers == ([StepResult(2, [2]), StepResult(3, [3])] if reports else [2, 3])
    assert executor.answered == [False, False, True]


def asked_for() -> list[SamplingParams]:
    """What may end an answer, or turn it, while the next step runs already."""
    return [
        SamplingParams(temperature=1.0, seed=1, max_tokens=40, stop=["a", "7", "x"]),
        SamplingParams(temperature=1.0, seed=2, max_tokens=40, n=3, stop_token_ids=range(3, 20)),
        SamplingParams(temperature=0.0, max_tokens=30, min_tokens=8, logprobs=2, prompt_logprobs=1),
        SamplingParams(temperature=1.0, seed=3, max_tokens=25, repetition_penalty=1.3, bad_words=["b"], n=2),
        SamplingParams(temperature=0.8, seed=4, max_tokens=40, top_k=9, include_stop_str_in_output=True, stop=["9"]),
        SamplingParams(max_tokens=1),
        SamplingParams(temperature=1.0, seed=6, max_tokens=30, logit_bias={2: 4.0}),
    ]


def turned() -> list[SamplingParams]:
    """With a grammar that forces tokens, and beams: what they bring no plan can foresee."""
    form = StructuredOutputsParams(regex=r"name[a-f]{2}age\d{3}(true|12)")
    beams = SamplingParams(use_beam_search=True, n=2, best_of=3, max_tokens=9)
    return [*asked_for()[:5], SamplingParams(temperature=1.0, seed=5, max_tokens=40, structured_outputs=form), beams]


def answers(llm: LLM, params: list[SamplingParams]) -> list[Any]:
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [
        [(one.token_ids, one.text, one.finish_reason, one.stop_reason, one.logprobs) for one in output.outputs]
        + [output.prompt_logprobs]
        for output in outputs
    ]


def all_answers(llm: LLM) -> list[Any]:
    """Also after a stream that is left early."""
    found = [answers(llm, asked_for()), answers(llm, turned())]
    for _ in llm.stream(PROMPTS[:3], SamplingParams(temperature=1.0, seed=9, max_tokens=60, ignore_eos=True)):
        break
    found.append(answers(llm, asked_for()))
    assert llm.stats().num_used_blocks == 0
    return found


def is_overlapped(llm: LLM) -> bool:
    return next(event for event in llm.events if isinstance(event, EngineStarted)).is_overlapped


def test_answers_are_an_inline_workers(tiny_folder: TinyFolder, tmp_path: Path, sent: list[Any]) -> None:
    folder = spelling_model(tiny_folder, tmp_path)
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": 128, "max_num_seqs": 8, "check_invariants": True}
    options |= {"max_num_batched_tokens": 24, "event_log_size": 10_000}
    with LLM(str(folder), **options) as inline:
        expected = all_answers(inline)
        assert not is_overlapped(inline)
    reasons = [one[2:4] for output in expected[0] for one in output[:-1]]
    assert {reason for reason, _ in reasons} == {"stop", "length"}
    assert any(isinstance(stop, str) for _, stop in reasons), "a stop string"
    assert any(isinstance(stop, int) for _, stop in reasons), "a stop token"
    log = tmp_path / "run.olog"
    with LLM(str(folder), distributed_executor_backend="mp", record=str(log), **options) as llm:
        assert all_answers(llm) == expected
        assert is_overlapped(llm)
        kinds = [type(event) for event in llm.events if type(event) in (Scheduled, StepDone)]
    assert "Scheduled Scheduled StepDone" in " ".join(kind.__name__ for kind in kinds)
    asked, computing = asked_along(sent)
    assert len(asked) > len(computing) / 2, "not where a grammar or beams decide where they go on"
    replayed = replay(lambda: read_log(log))
    assert replayed.difference is None
    assert replayed.num_steps >= len(computing) - 1, "the last one may be held"


def test_without_overlap_each_step_is_asked_for_when_it_is_wanted(tiny_folder: TinyFolder, sent: list[Any]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, detokenize=False)
    with engine(tiny_folder("llama"), distributed_executor_backend="mp", async_scheduling=False) as llm:
        llm.generate([[3, 4, 5], [6, 7]], params, use_tqdm=False)
        assert not is_overlapped(llm)
    asked, computing = asked_along(sent)
    assert not asked
    assert computing == [message for message in sent if isinstance(message, int)]
