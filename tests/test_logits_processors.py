"""Users' functions edit logits before the draw: alone, in order, beside other requests, and when they fail."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from octavo import LLM, InvalidRequestError, SamplingParams
from tests.conftest import TinyFolder

PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True, detokenize=False)


def engine(tiny_folder: TinyFolder, backend: str, **options: Any) -> LLM:
    return LLM(
        str(tiny_folder("qwen3")), backend=backend, skip_tokenizer_init=True, dtype="float32", max_model_len=64,
        max_num_seqs=8, num_gpu_blocks_override=40, check_invariants=True, **options,
    )  # fmt: skip


def only(*token_ids: int) -> Any:
    """A function that allows one token after the other."""

    def force(output: list[int], logits: np.ndarray) -> np.ndarray:
        forced = np.full_like(logits, -np.inf)
        forced[token_ids[len(output) % len(token_ids)]] = 0.0
        return forced

    return force


def follow_functions(llm: LLM) -> None:
    """The same on every backend."""
    seen: list[tuple[list[int], list[int]]] = []

    def watch(prompt: list[int], output: list[int], logits: np.ndarray) -> np.ndarray:
        seen.append((prompt, output))
        assert logits.dtype == np.float32
        assert logits.ndim == 1
        return logits

    def broken(output: list[int], logits: np.ndarray, unused: int = 0) -> Any:
        if len(output) == 2:
            raise ZeroDivisionError("ouch")
        return logits

    plain = [one.outputs[0].token_ids for one in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]
    drawn = GREEDY.replace(temperature=1.0, seed=5, n=2, logits_processors=[only(20, 21, 22)], logprobs=0)
    params = [GREEDY.replace(logits_processors=[broken]), drawn, GREEDY.replace(logits_processors=[watch])]
    failed, forced, watched = llm.generate(PROMPTS, params, use_tqdm=False)
    assert (failed.outputs[0].finish_reason, failed.outputs[0].token_ids) == ("error", plain[0][:2])
    assert failed.outputs[0].stop_reason == "logits_processors[0] raised ZeroDivisionError: ouch"
    assert [one.token_ids for one in forced.outputs] == [[20, 21, 22, 20, 21]] * 2
    assert all(row[token].logprob < -0.5 for row, token in zip(*parts(forced.outputs[0]), strict=True)), "the model's"
    assert watched.outputs[0].token_ids == plain[2]
    assert seen[:5] == [(PROMPTS[2], plain[2][:place]) for place in range(5)]
    after = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [one.outputs[0].token_ids for one in after] == plain
    assert llm.stats().num_used_blocks == 0


def parts(completion: Any) -> tuple[Any, list[int]]:
    return completion.logprobs, completion.token_ids


BACKENDS = {"reference": {}, "cpu": {}, "overlapped": {"backend": "cpu", "async_scheduling": True}}


@pytest.mark.parametrize("name", list(BACKENDS))
def test_functions_choose_tokens(name: str, tiny_folder: TinyFolder) -> None:
    with engine(tiny_folder, **{"backend": name, **BACKENDS[name]}) as llm:
        follow_functions(llm)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_edits_are_those_of_parameters(backend: str, tiny_folder: TinyFolder) -> None:
    """A function and a parameter that say the same, and both at once."""

    def add(by: float) -> Any:
        def edit(output: list[int], logits: np.ndarray) -> np.ndarray:
            logits[[7, 9]] += by
            return logits.astype(np.float64)

        return edit

    drawn = GREEDY.replace(temperature=0.9, seed=3, frequency_penalty=0.5, top_k=9, max_tokens=8, logprobs=3)
    whole = drawn.replace(logit_bias={7: 3.0, 9: 3.0})
    both = drawn.replace(logit_bias={7: 1.0, 9: 1.0}, logits_processors=[add(0.5), add(1.5)])
    with engine(tiny_folder, backend, logprobs_mode="processed_logprobs") as llm:
        one, other, free = llm.generate([PROMPTS[0]] * 3, [whole, both, drawn], use_tqdm=False)
    assert one.outputs[0].token_ids == other.outputs[0].token_ids != free.outputs[0].token_ids
    for a, b in zip(one.outputs[0].logprobs or [], other.outputs[0].logprobs or [], strict=True):
        assert a.keys() == b.keys()
        assert all(abs(a[token].logprob - b[token].logprob) < 1e-4 for token in a)


UNFIT: dict[str, tuple[Any, str]] = {
    "none": (None, "returned None, allowed are floats of shape"),
    "short": (np.zeros(3, np.float32), r"returned numbers of type float32 and shape \(3,\), allowed are floats of"),
    "ids": (np.zeros(64, np.int64), "returned numbers of type int64 and shape"),
    "nan": (lambda logits: logits * np.nan, "returned NaN or infinity, allowed are numbers and -inf"),
    "infinity": (lambda logits: logits + np.inf, "returned NaN or infinity"),
    "text": ("abc", "returned numbers of type <U3"),
    "ragged": ([[1.0], [2.0, 3.0]], "raised ValueError"),
    "banned": (lambda logits: logits - np.inf, "no token could be drawn"),
}


def test_what_is_no_logits_ends_its_own_request(tiny_folder: TinyFolder) -> None:
    def give(made: Any) -> Any:
        return lambda _, logits: made(logits) if callable(made) else made

    with engine(tiny_folder, "cpu") as llm:
        params = [GREEDY.replace(logits_processors=[give(made)]) for made, _ in UNFIT.values()]
        *unfit, fine = llm.generate([PROMPTS[0]] * (len(UNFIT) + 1), [*params, GREEDY], use_tqdm=False)
    for output, (_, expected) in zip(unfit, UNFIT.values(), strict=True):
        assert (output.outputs[0].finish_reason, output.outputs[0].token_ids) == ("error", [])
        assert re.search(expected, str(output.outputs[0].stop_reason))
    assert len(fine.outputs[0].token_ids) == 5


def test_they_are_refused_where_they_cannot_run(tiny_folder: TinyFolder) -> None:
    asked = {"logits_processors": [only(3)]}
    with pytest.raises(InvalidRequestError, match="logits_processors is set and use_beam_search is True"):
        SamplingParams(use_beam_search=True, **asked)
    match = "steps of this engine run in other processes"
    with (
        engine(tiny_folder, "cpu", distributed_executor_backend="mp") as llm,
        pytest.raises(InvalidRequestError, match=match),
    ):
        llm.generate(PROMPTS[0], GREEDY.replace(**asked), use_tqdm=False)
