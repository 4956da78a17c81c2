"""What logprobs are in each logprobs_mode, through the whole engine: against the raw logits that the engine returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from octavo import LLM, SamplingParams
from octavo.outputs import RequestOutput
from octavo.worker import logprobs
from tests.conftest import TinyFolder

MODES = ["raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"]
PROMPTS = [[5, 9, 5, 7], [3, 4, 3, 4, 8]]
ALL: dict[str, Any] = {"max_tokens": 6, "logprobs": -1, "ignore_eos": True, "detokenize": False}
EDITED = {"repetition_penalty": 1.7, "presence_penalty": 0.4, "frequency_penalty": 0.3, "logit_bias": {7: 2.5}}
PARAMS = [
    SamplingParams(temperature=0.0, prompt_logprobs=3, **EDITED, **ALL),
    SamplingParams(temperature=0.7, top_k=5, seed=3, prompt_logprobs=3, n=2, **EDITED, **ALL),
]


@pytest.fixture(params=["cpu", "reference"])
def told(
    request: pytest.FixtureRequest, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[RequestOutput]]:
    """Each mode's results for the same requests; two of the three rows are scored at once."""
    monkeypatch.setattr(logprobs, "LOGPROB_TILE", 2)
    answers = {}
    for mode in MODES:
        with engine(tiny_folder, request.param, mode) as llm:
            answers[mode] = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return answers


def engine(tiny_folder: TinyFolder, backend: str, mode: str) -> LLM:
    return LLM(
        str(tiny_folder("qwen3")), backend=backend, logprobs_mode=mode, max_logprobs=-1, skip_tokenizer_init=True,
        max_model_len=64, max_num_seqs=4, num_gpu_blocks_override=40,
    )  # fmt: skip


def rows_of(answers: list[RequestOutput], request: int, sample: int) -> np.ndarray:
    """[tokens, V]: the value of each token of the vocabulary."""
    rows = answers[request].outputs[sample].logprobs
    assert rows is not None
    return np.array([[row[token].logprob for token in range(len(row))] for row in rows])


def processed(logits: np.ndarray, prompt: list[int], output: list[int], params: SamplingParams) -> np.ndarray:
    logits = logits.copy()
    logits[7] += 2.5
    for token in {*prompt, *output}:
        logits[token] *= 1 / 1.7 if logits[token] > 0 else 1.7
        logits[token] -= 0.3 * output.count(token) + 0.4 * (token in output)
    if params.temperature > 0:
        logits /= 0.7
        logits[logits < np.sort(logits)[-5]] = -np.inf
    return logits


@pytest.mark.parametrize(("request_id", "sample"), [(0, 0), (1, 0), (1, 1)], ids=["greedy", "drawn", "fork"])
def test_each_mode_says_what_its_name_says(told: dict[str, list[RequestOutput]], request_id: int, sample: int) -> None:
    token_ids = [list(told[mode][request_id].outputs[sample].token_ids) for mode in MODES]
    assert token_ids == token_ids[:1] * 4, "the mode changes no draw"
    raw = rows_of(told["raw_logits"], request_id, sample)
    expected = np.array(
        [processed(row, PROMPTS[request_id], token_ids[0][:place], PARAMS[request_id]) for place, row in enumerate(raw)]
    )
    values = {
        "raw_logprobs": log_softmax(raw, axis=1),
        "raw_logits": raw,
        "processed_logprobs": log_softmax(expected, axis=1),
        "processed_logits": expected,
    }
    for mode in MODES:
        got = rows_of(told[mode], request_id, sample)
        np.testing.assert_allclose(got, values[mode], rtol=1e-4, atol=1e-4)
        rows = told[mode][request_id].outputs[sample].logprobs
        assert rows is not None
        for row, token, value in zip(rows, token_ids[0], got, strict=True):
            order = sorted(range(len(value)), key=lambda one: (-value[one], one))
            assert row[token].rank == 1 + order.index(token)
    assert np.abs(values["raw_logprobs"] - raw).max() > 0.1, "the modes differ"
    assert np.isinf(values["processed_logprobs"]).any() == (request_id == 1)


def test_nothing_of_a_prompt_is_processed(told: dict[str, list[RequestOutput]]) -> None:
    for one, other in (("raw_logprobs", "processed_logprobs"), ("raw_logits", "processed_logits")):
        for a, b in zip(told[one], told[other], strict=True):
            assert a.prompt_logprobs == b.prompt_logprobs
    logprobs, logits = (told[mode][0].prompt_logprobs[1] for mode in ("raw_logprobs", "raw_logits"))
    differences = {round(logits[token].logprob - logprobs[token].logprob, 4) for token in logits}
    assert len(differences) == 1, "log-probabilities are logits less one number"
    assert abs(differences.pop()) > 0.1


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_tokens_asked_for_by_id(tiny_folder: TinyFolder, backend: str) -> None:
    """Also for tokens that cannot be drawn."""
    params = SamplingParams(
        temperature=0.5, allowed_token_ids=[4, 6, 9], logprobs=0, logprob_token_ids=[6, 10], max_tokens=3, seed=1,
        detokenize=False,
    )  # fmt: skip
    with engine(tiny_folder, backend, "processed_logprobs") as llm:
        (output,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
    for token, row in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True):
        assert token in (4, 6, 9)
        assert row[10].logprob == -np.inf
        assert row[6].rank <= 3 < row[10].rank
        assert -np.inf < row[6].logprob <= 0.0
