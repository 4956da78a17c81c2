"""Any valid SamplingParams in any combination: every request ends, and the others in its batch are not affected."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from octavo import LLM, InvalidRequestError, SamplingParams
from octavo.outputs import CompletionOutput
from tests.conftest import TinyFolder

VOCAB_SIZE = 160
FLOATS = [0.0, 1e-45, 1e-37, 1e-6, 0.01, 0.5, 1.0, 1.5, 2.0, 100.0, 1e6, 1e30, 1e36, 3e38, 1e308, 10**400]
NOT_NUMBERS = [math.nan, math.inf, -math.inf]
FIELDS: dict[str, list[Any]] = {
    "temperature": FLOATS,
    "top_p": FLOATS,
    "min_p": FLOATS,
    "repetition_penalty": FLOATS,
    "presence_penalty": FLOATS,
    "frequency_penalty": FLOATS,
    "top_k": [-1, 0, 1, 5, VOCAB_SIZE, 2**31 - 1],
    "seed": [-(2**63), -1, 0, 2**63 - 1],
    "n": [1, 3],
    "min_tokens": [0, 2, 4],
    "ignore_eos": [True, False],
    "logprobs": [0, 3, -1],
    "prompt_logprobs": [0, 2],
    "allowed_token_ids": [[5], [0, VOCAB_SIZE - 1], range(0, VOCAB_SIZE, 7)],
    "stop_token_ids": [[5], range(3, VOCAB_SIZE)],
}
PROMPT = [3, 1, 4, 1, 5]
NEIGHBOUR = SamplingParams(seed=11, max_tokens=6, logprobs=1, repetition_penalty=1.1, top_p=0.9)


def draw_params(rng: random.Random) -> SamplingParams | None:
    """None if SamplingParams refuses the values."""
    fields = {name: rng.choice(values) for name, values in FIELDS.items() if rng.random() < 0.4}
    for name in ("temperature", "presence_penalty", "frequency_penalty", "repetition_penalty"):
        if name in fields and rng.random() < 0.3:
            fields[name] = rng.choice([-fields[name], *NOT_NUMBERS])
    if rng.random() < 0.5:
        biases = [-100.0, -1e-37, 100.0, *([math.nan, 1e39] if rng.random() < 0.1 else [])]
        fields["logit_bias"] = {rng.randrange(VOCAB_SIZE): rng.choice(biases) for _ in range(3)}
    try:
        return SamplingParams(max_tokens=4, **fields)
    except InvalidRequestError:
        return None


def check(one: CompletionOutput, params: SamplingParams) -> None:
    assert one.finish_reason in ("stop", "length", "error"), one
    assert all(0 <= token_id < VOCAB_SIZE for token_id in one.token_ids)
    if params.allowed_token_ids is not None:
        assert set(one.token_ids) <= set(params.allowed_token_ids)
    if one.finish_reason == "error":
        assert str(one.stop_reason).startswith("no token could be drawn"), one
    if params.logprobs is not None:
        assert one.logprobs is not None
        assert [next(iter(row)) for row in one.logprobs] == one.token_ids
        if params.logprobs == -1:
            assert all(len(row) == VOCAB_SIZE for row in one.logprobs)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_request_ends_by_itself(tiny_folder: TinyFolder, backend: str) -> None:
    rng = random.Random(5)
    options = {"skip_tokenizer_init": True, "num_threads": 2, "max_model_len": 64, "num_gpu_blocks_override": 64}
    num_refused = num_ended = 0
    with LLM(str(tiny_folder("llama")), backend=backend, max_logprobs=-1, **options) as llm:
        (alone,) = llm.generate([PROMPT], NEIGHBOUR, use_tqdm=False)
        for _ in range(25):
            drawn = [draw_params(rng) for _ in range(12)]
            kept = [params for params in drawn if params is not None]
            num_refused += len(drawn) - len(kept)
            try:
                outputs = llm.generate([PROMPT] * (1 + len(kept)), [NEIGHBOUR, *kept], use_tqdm=False)
            except InvalidRequestError as refusal:
                assert "no token could be drawn" in str(refusal)  # noqa: PT017 (the others are a success)
                continue
            # logprobs are not compared: the reference's last bits depend on the number of rows
            assert outputs[0].outputs[0].token_ids == alone.outputs[0].token_ids
            for output, params in zip(outputs[1:], kept, strict=True):
                assert len(output.outputs) == params.n
                num_ended += len(output.outputs)
                for one in output.outputs:
                    check(one, params)
    assert min(num_refused, num_ended) > 50, "both ends are seen"
