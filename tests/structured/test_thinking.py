"""Thoughts before an answer: found in its tokens, limited by a budget, and free of the answer's grammar."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import LLM, InvalidRequestError, SamplingParams
from octavo.structured.thinking import Thinking
from octavo.structured_outputs import StructuredOutputsParams, Thoughts
from tests.conftest import TinyFolder
from tests.structured.spelling_model import spelling_model

BEGIN, END = (7, 8), (9, 7, 9)


def thinking(**given: Any) -> Thinking:
    return Thinking(Thoughts(**{"begin": BEGIN, "end": END, "closing": (5, *END), "is_begun": False, **given}))


@pytest.mark.parametrize(
    ("output", "start", "may_begin"),
    [
        ([], 0, 7),
        ([7], 0, 8),
        ([1], 0, None),
        ([7, 1, 8], 0, None),
        ([7, 8], None, None),
        ([7, 8, 9, 7], None, None),
        ([7, 8, 9, 7, 9], 5, None),
        ([7, 8, 1, 9, 9, 7, 9, 4, 9, 7, 9], 7, None),
    ],
)
def test_the_answer_begins_behind_the_mark(output: list[int], start: int | None, may_begin: int | None) -> None:
    tokens = np.array(output, np.int32)
    assert thinking().answer_start(tokens) == start
    assert thinking().may_begin(tokens) == may_begin


def test_thoughts_that_the_prompt_has_begun() -> None:
    begun = thinking(is_begun=True)
    assert begun.answer_start(np.array([1, 9, 7], np.int32)) is None
    assert begun.answer_start(np.array([1, 9, 7, 9], np.int32)) == 4
    assert begun.may_begin(np.zeros(0, np.int32)) is None


@pytest.mark.parametrize(
    ("output", "forced"),
    [
        ([7, 8, 1, 1], []),
        ([7, 8, 1, 1, 1], [5, 9, 7, 9]),
        ([7, 8, 1, 1, 5], [9, 7, 9]),
        ([7, 8, 1, 5, 9, 7], [9]),
        ([7, 8, 5, 9, 7, 9, 1], []),
        ([1, 1, 1, 1], []),
        ([7], []),
    ],
)
def test_a_budget_forces_what_ends_the_thoughts(output: list[int], forced: list[int]) -> None:
    tokens = np.array(output, np.int32)
    assert thinking(budget=3).forced(tokens, 100) == forced
    assert thinking(budget=3).forced(tokens, 1) == forced[:1]
    assert thinking().forced(tokens, 100) == []


# In whole engines

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{# </think> #}"


@pytest.fixture(scope="module")
def llm(tiny_folder: TinyFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder: Path = spelling_model(tiny_folder, tmp_path_factory.mktemp("thinking"))
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": 160, "max_num_seqs": 8, "check_invariants": True}
    with LLM(str(folder), chat_template=TEMPLATE, **options) as made:
        yield made


def answers(llm: LLM, prompt: str, **fields: Any) -> list[str]:
    params = SamplingParams(temperature=1.0, seed=3, **{"max_tokens": 80, **fields})
    return [one.text for one in llm.generate(prompt, params, use_tqdm=False)[0].outputs]


def test_a_budget_ends_the_thoughts(llm: LLM) -> None:
    (free,) = answers(llm, "Hi<think>")
    for budget in (1, 7, 30):
        for text in answers(llm, "Hi<think>", thinking_token_budget=budget, n=3):
            thoughts, mark, rest = text.partition("</think>")
            assert mark
            assert 0 < len(llm.get_tokenizer().encode(thoughts)) <= budget + len("</think>")
            assert rest
    (text,) = answers(llm, "Hi<think>", thinking_token_budget=7)
    assert free.startswith(text.partition("</think>")[0])
    assert answers(llm, "Hi<think></think>", thinking_token_budget=7) == answers(llm, "Hi<think></think>")


def test_a_form_begins_behind_the_thoughts(llm: LLM) -> None:
    form = {"choice": ["name", "age"]}
    fields = {"structured_outputs": form, "thinking_token_budget": 12}
    for text in answers(llm, "Hi<think>", n=4, **fields):
        assert text.partition("</think>")[2] in form["choice"]
    assert answers(llm, "Hi", structured_outputs=form)[0] in form["choice"]
    at_once = {**form, "after_thoughts": False}
    assert answers(llm, "Hi<think>", structured_outputs=at_once)[0] in form["choice"]


def test_a_model_may_begin_thoughts_or_answer_at_once(llm: LLM) -> None:
    form = StructuredOutputsParams(choice=["name", "age"], after_thoughts=True)
    toward = dict.fromkeys(llm.get_tokenizer().encode("<"), 100.0)
    fields: dict[str, Any] = {"structured_outputs": form, "thinking_token_budget": 5}
    assert answers(llm, "Hi", **fields, logit_bias=dict.fromkeys(toward, -100.0))[0] in ("name", "age")
    (text,) = answers(llm, "Hi", **fields, logit_bias=toward)
    assert text.startswith("<")


def test_what_cannot_go_with_a_budget_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="thinking_token_budget is 0, allowed"):
        SamplingParams(thinking_token_budget=0)
    with pytest.raises(InvalidRequestError, match="thinking_token_budget is 3 and log-probabilities"):
        SamplingParams(thinking_token_budget=3, logprobs=1)
    with pytest.raises(InvalidRequestError, match="thinking_token_budget is set and use_beam_search"):
        SamplingParams(thinking_token_budget=3, use_beam_search=True)
