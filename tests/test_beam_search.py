"""Beam search through the engine: transformers' beams and scores, beside other requests, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import LLM, AsyncLLM, BeamSearchParams, InvalidRequestError, SamplingParams
from tests.conftest import TinyFolder

WIDTH, MAX_TOKENS = 4, 10
STOPS = [7, 30, 31]
PROMPTS = [[5, 9, 11], list(range(20, 45))]
OPTIONS: dict[str, Any] = {
    "skip_tokenizer_init": True, "dtype": "float32", "max_model_len": 64, "max_num_seqs": 16,
    "num_gpu_blocks_override": 48, "check_invariants": True,
}  # fmt: skip


def beams_of_transformers(folder: Any, prompt: list[int], **options: Any) -> list[tuple[list[int], float]]:
    """The tokens and scores of the WIDTH best answers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = model.generate(
            torch.tensor([prompt]), num_beams=WIDTH, num_return_sequences=WIDTH, max_new_tokens=MAX_TOKENS,
            do_sample=False, return_dict_in_generate=True, output_scores=True, eos_token_id=[2, *STOPS],
            pad_token_id=0, **options,
        )  # fmt: skip
    answers = [ids[len(prompt) :].tolist() for ids in found.sequences]
    ends = [next((i + 1 for i, one in enumerate(ids) if one in (2, *STOPS)), len(ids)) for ids in answers]
    return [(ids[:end], float(s)) for ids, end, s in zip(answers, ends, found.sequences_scores, strict=True)]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"early_stopping": True, "length_penalty": 0.0},
        {"early_stopping": "never", "length_penalty": 2.0},
        {"early_stopping": False, "length_penalty": -1.0},
    ],
)
def test_beams_and_scores_are_those_of_transformers(
    name: str, options: dict[str, Any], tiny_folder: TinyFolder
) -> None:
    params = BeamSearchParams(beam_width=WIDTH, max_tokens=MAX_TOKENS, stop_token_ids=STOPS, **options)
    with LLM(str(tiny_folder(name)), **OPTIONS) as llm:
        outputs = llm.beam_search(PROMPTS, params)
        assert llm.stats().num_used_blocks == 0
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        expected = beams_of_transformers(tiny_folder(name), prompt, **options)
        assert len(output.sequences) == WIDTH
        for beam, (token_ids, score) in zip(output.sequences, expected, strict=True):
            assert beam.tokens == prompt + token_ids
            assert beam.cum_logprob / len(token_ids) ** params.length_penalty == pytest.approx(
                score, rel=1e-5, abs=1e-4
            )
            chosen = [row[token_id].logprob for row, token_id in zip(beam.logprobs, token_ids, strict=True)]
            assert sum(chosen) == pytest.approx(beam.cum_logprob)


def diverse_beams(folder: Any, prompt: list[int], num_groups: int, penalty: float) -> list[tuple[list[int], float]]:
    """Answers and their scores by the algorithm of Vijayakumar et al. (2016), over all tokens, without ends."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    size = WIDTH // num_groups
    groups: list[list[tuple[list[int], float]]] = [[([], 0.0)] for _ in range(num_groups)]
    for _ in range(MAX_TOKENS):
        chosen: list[int] = []
        for group, beams in enumerate(groups):
            ways = []
            for tokens, total in beams:
                with torch.no_grad():
                    scores = model(torch.tensor([prompt + tokens])).logits[0, -1].log_softmax(-1) + total
                for token_id in chosen:
                    scores[token_id] -= penalty
                ways += [([*tokens, token_id], score) for token_id, score in enumerate(scores.tolist())]
            groups[group] = sorted(ways, key=lambda way: -way[1])[:size]
            chosen += [tokens[-1] for tokens, _ in groups[group]]
    found = [(tokens, total / MAX_TOKENS) for group in groups for tokens, total in group]
    return sorted(found, key=lambda way: -way[1])


@pytest.mark.parametrize(("num_groups", "penalty"), [(2, 0.5), (4, 0.3), (4, 5.0)])
def test_groups_of_beams_are_those_of_the_paper(num_groups: int, penalty: float, tiny_folder: TinyFolder) -> None:
    params = BeamSearchParams(
        beam_width=WIDTH, max_tokens=MAX_TOKENS, ignore_eos=True, num_beam_groups=num_groups, diversity_penalty=penalty
    )
    with LLM(str(tiny_folder("llama")), **OPTIONS) as llm:
        plain, outputs = (
            llm.beam_search(PROMPTS, BeamSearchParams(beam_width=WIDTH, max_tokens=MAX_TOKENS, ignore_eos=True)),
            llm.beam_search(PROMPTS, params),
        )
        assert llm.stats().num_used_blocks == 0
    for prompt, output, alike in zip(PROMPTS, outputs, plain, strict=True):
        expected = diverse_beams(tiny_folder("llama"), prompt, num_groups, penalty)
        assert [beam.tokens for beam in output.sequences] == [prompt + tokens for tokens, _ in expected]
        first = {beam.tokens[len(prompt)] for beam in output.sequences}
        assert len(first) >= len({beam.tokens[len(prompt)] for beam in alike.sequences})
        for beam, (tokens, score) in zip(output.sequences, expected, strict=True):
            chosen = [row[token_id].logprob for row, token_id in zip(beam.logprobs, tokens, strict=True)]
            assert sum(chosen) == pytest.approx(beam.cum_logprob)  # the model's own, without penalties
            assert beam.cum_logprob / MAX_TOKENS >= score - 1e-4


@pytest.mark.parametrize("asynchronous", [False, True])
def test_beams_and_ordinary_requests_share_steps(asynchronous: bool, tiny_folder: TinyFolder) -> None:
    beams = SamplingParams(
        use_beam_search=True, best_of=4, n=2, max_tokens=9, detokenize=False, prompt_logprobs=1, ignore_eos=True
    )
    drawn = SamplingParams(n=2, seed=4, max_tokens=12, detokenize=False, ignore_eos=True, logprobs=1)
    params = [beams, drawn, beams.replace(best_of=3, n=3, prompt_logprobs=None), drawn.replace(seed=5, n=1)]
    prompts = [PROMPTS[1], PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    with LLM(str(tiny_folder("qwen3")), async_scheduling=asynchronous, max_num_batched_tokens=16, **OPTIONS) as llm:
        together = llm.generate(prompts, params)
        alone = [llm.generate([prompt], one)[0] for prompt, one in zip(prompts, params, strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert [beam.token_ids for beam in one.outputs] == [beam.token_ids for beam in other.outputs]
        assert [beam.finish_reason for beam in one.outputs] == ["length"] * len(one.outputs)
    assert len(together[0].prompt_logprobs or ()) == len(PROMPTS[1])
    best, second = together[0].outputs
    assert best.cumulative_logprob > second.cumulative_logprob
    assert best.logprobs is None


def test_edits_change_the_beams(tiny_folder: TinyFolder) -> None:
    params = SamplingParams(use_beam_search=True, n=3, max_tokens=6, min_tokens=6, detokenize=False, ignore_eos=True)
    with LLM(str(tiny_folder("qwen3")), **OPTIONS) as llm:
        (plain,) = llm.generate([PROMPTS[0]], params)
        used = plain.outputs[0].token_ids[0]
        (banned,) = llm.generate([PROMPTS[0]], params.replace(logit_bias={used: -100.0}))
        (allowed,) = llm.generate([PROMPTS[0]], params.replace(allowed_token_ids=[50, 51, 52, 53]))
        (flat,) = llm.generate([PROMPTS[0]], params.replace(temperature=1.5, top_k=1, seed=3))
    assert all(used not in one.token_ids for one in banned.outputs)
    assert {token_id for one in allowed.outputs for token_id in one.token_ids} <= {50, 51, 52, 53}
    assert [one.token_ids for one in flat.outputs] == [one.token_ids for one in plain.outputs]


def test_an_async_engine_searches(tiny_folder: TinyFolder) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=5, ignore_eos=True)

    async def search() -> Any:
        engine = AsyncLLM(str(tiny_folder("llama")), **OPTIONS)
        try:
            return [output async for output in engine.beam_search(PROMPTS[0], "one", params)]
        finally:
            engine.shutdown()

    (output,) = asyncio.run(search())
    assert output.finished
    with LLM(str(tiny_folder("llama")), **OPTIONS) as llm:
        (same,) = llm.beam_search(PROMPTS[0], params)
    assert [PROMPTS[0] + one.token_ids for one in output.outputs] == [one.tokens for one in same.sequences]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"best_of": 2, "n": 3}, r"best_of is 2, allowed is n=3 or more"),
        ({"stop": "x"}, r"stop is set and use_beam_search is True, allowed is one of the two: use stop_token_ids"),
        ({"logprob_token_ids": [3]}, r"logprob_token_ids is set and use_beam_search is True"),
        ({"length_penalty": float("nan")}, r"length_penalty is nan, allowed is a number"),
        ({"length_penalty": 51}, r"length_penalty is 51, allowed is from -50 to 50"),
        ({"early_stopping": "soon"}, r"early_stopping is 'soon', allowed are True, False and 'never'"),
        ({"early_stopping": 1}, r"early_stopping is 1, allowed are True, False and 'never'"),
        ({"best_of": 0}, r"best_of is 0, allowed is 1 to 16384"),
        ({"use_beam_search": 1}, r"use_beam_search is 1, allowed are True and False"),
        ({"use_beam_search": False, "length_penalty": 2.0}, r"length_penalty is 2.0, but use_beam_search is False"),
        ({"use_beam_search": False, "best_of": 3}, r"best_of is 3, but use_beam_search is False"),
        ({"use_beam_search": False, "early_stopping": True}, r"early_stopping is True, but use_beam_search is False"),
        ({"use_beam_search": False, "num_beam_groups": 2}, r"num_beam_groups is 2, but use_beam_search is False"),
        (
            {"n": 4, "num_beam_groups": 2},
            r"num_beam_groups is 2 and diversity_penalty is 0, allowed are several",
        ),
        ({"diversity_penalty": 0.5}, r"num_beam_groups is 1 and diversity_penalty is 0.5, allowed are several groups"),
        ({"diversity_penalty": -0.5}, r"diversity_penalty is -0.5, allowed is from 0 to"),
        ({"num_beam_groups": 0}, r"num_beam_groups is 0, allowed is 1 to 16384"),
    ],
)
def test_parameters_are_checked(options: dict[str, Any], error: str) -> None:
    with pytest.raises(InvalidRequestError, match=error):
        SamplingParams(**{"use_beam_search": True, **options})


ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("never"))
BEAM_FIELDS = (
    *("use_beam_search", "best_of", "length_penalty", "early_stopping", "n", "min_tokens", "max_tokens"),
    *("num_beam_groups", "diversity_penalty"),
)


@pytest.fixture(scope="module")
def small(tiny_folder: TinyFolder) -> Iterator[LLM]:
    with LLM(str(tiny_folder("llama")), **OPTIONS) as llm:
        yield llm


@given(st.dictionaries(st.sampled_from(BEAM_FIELDS), ANYTHING | st.integers(0, 6)))
@settings(max_examples=150, deadline=None)
def test_any_value_is_served_or_refused(small: LLM, options: dict[str, Any]) -> None:
    try:
        params = SamplingParams(**{"use_beam_search": True, "max_tokens": 3, "detokenize": False, **options})
        (output,) = small.generate([[5, 6]], params, use_tqdm=False)
    except InvalidRequestError:
        return
    assert len(output.outputs) == params.n
    assert all(one.finish_reason in ("stop", "length") for one in output.outputs)


@given(st.dictionaries(st.sampled_from([one.name for one in fields(BeamSearchParams)]), ANYTHING))
@settings(max_examples=150, deadline=None)
def test_any_beam_search_params_are_taken_or_refused(options: dict[str, Any]) -> None:
    try:
        params = BeamSearchParams(**{"beam_width": 2, "max_tokens": 3, **options})
    except InvalidRequestError:
        return
    assert params.sampling_params(20).num_sequences == params.beam_width


def test_groups_have_as_many_beams_each(small: LLM) -> None:
    params = SamplingParams(
        use_beam_search=True, n=2, best_of=4, num_beam_groups=3, diversity_penalty=1.0, detokenize=False
    )
    with pytest.raises(InvalidRequestError, match="num_beam_groups is 3 and best_of is 4, allowed is a multiple"):
        small.generate([[5, 6]], params)


def test_parameters_may_be_assigned() -> None:
    params = SamplingParams(n=2)
    params.length_penalty = 2.0  # type: ignore[misc]
    params.best_of = 4  # type: ignore[misc]
    params.use_beam_search = True  # type: ignore[misc]
    assert params.num_sequences == 4
    beams = BeamSearchParams(beam_width=2, max_tokens=3)
    beams.early_stopping = "never"  # type: ignore[misc]
    with pytest.raises(InvalidRequestError, match="beam_width is 0, allowed is 1 to 16384"):
        beams.beam_width = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"beam_width": 2}, "max_tokens is missing"),
        ({"beam_width": 2, "max_tokens": 0}, "max_tokens is 0, allowed is 1 or more"),
        ({"beam_width": 2, "max_tokens": 2, "temperature": -1.0}, "temperature is -1.0"),
        (
            {"beam_width": 2, "max_tokens": 2, "structured_outputs": {"json": "{}"}},
            "not supported",
        ),
        ({"beam_width": 2, "max_tokens": 2, "beam_wdith": 2}, "BeamSearchParams has no field 'beam_wdith'"),
        ({"beam_width": 2, "max_tokens": 2, "allowed_token_ids": [-1]}, "allowed_token_ids"),
    ],
)
def test_beam_search_params_are_checked(options: dict[str, Any], error: str) -> None:
    with pytest.raises(InvalidRequestError, match=error):
        BeamSearchParams(**options)


def test_what_the_engine_cannot_serve_is_refused(tiny_folder: TinyFolder) -> None:
    with LLM(str(tiny_folder("llama")), **OPTIONS) as llm:
        for width, error in [(17, "n is 17, allowed is up to max_num_seqs = 16"), (16, "of each of 16 beams")]:
            with pytest.raises(InvalidRequestError, match=error):
                llm.beam_search([[3] * 20], BeamSearchParams(beam_width=width, max_tokens=40))
        params = BeamSearchParams(beam_width=4, max_tokens=4, allowed_token_ids=[5, 6, 7])
        with pytest.raises(InvalidRequestError, match="n is 4, but allowed_token_ids holds 3 tokens"):
            llm.beam_search([[3]], params)
        for params, error in [(SamplingParams(), "params is SamplingParams"), (None, "params is None")]:  # type: ignore[assignment]
            with pytest.raises(InvalidRequestError, match=error):
                llm.beam_search([[3]], params)
        with pytest.raises(InvalidRequestError, match="beam_search has no argument 'beams'"):
            llm.beam_search([[3]], BeamSearchParams(beam_width=2, max_tokens=2), beams=3)
