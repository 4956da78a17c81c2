"""An answer's text for any tokens after any prompt: the decoded text, cut at the first stop string."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder

from octavo.engine.output import RequestText
from octavo.messages import LogprobRow
from octavo.outputs import CompletionOutput, FinishReason
from octavo.request import Request, Sequence, SequenceId
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.scheduler.step import SequenceUpdate
from octavo.text.tokenizer import Tokenizer
from octavo.text.tokenizer_parts import TokenizerParts
from tests.text import tokenizers


def with_odd_tokens(encoder: Encoder) -> Tokenizer:
    encoder.add_tokens(
        [
            AddedToken(" left ", special=True, lstrip=True),
            AddedToken("Right", rstrip=True, normalized=True),
            AddedToken("▁é", normalized=False),
            AddedToken("<0x41>", special=True),
        ]
    )
    return Tokenizer(TokenizerParts(encoder))


KINDS = {
    "byte-level": with_odd_tokens(tokenizers.byte_level()),
    "byte-fallback": with_odd_tokens(tokenizers.byte_fallback()),
    "metaspace": with_odd_tokens(tokenizers.metaspace()),
}


def answer(tokenizer: Tokenizer, prompt: list[int], ids: list[int], params: SamplingParams) -> str:
    """The text that a reader gets, output by output."""
    request = Request("0", prompt or [0], params, seed=0, arrival_time=0.0, max_output_tokens=len(ids))
    request.prompt_token_ids = prompt
    sequence = Sequence(SequenceId(0), request, 0, list(prompt))
    request.sequences.append(sequence)
    made = RequestText(request, tokenizer)
    text = ""
    for number, token_id in enumerate(ids):
        sequence.finish_reason = "length" if number == len(ids) - 1 else None
        stop = made.extend(SequenceUpdate(sequence, [token_id], [], []), 0.0)
        output = made.output(0.0)
        if output is not None and output.outputs:
            text += output.outputs[0].text
        if stop is not None:
            break
    return text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(
    ids=st.lists(st.integers(0, 275), min_size=1, max_size=30),
    at=st.integers(0, 29),
    skips=st.booleans(),
    stop=st.one_of(st.none(), st.text("ab é\ufffdh", min_size=1, max_size=3)),
)
def test_an_answer_is_the_rest_of_the_text(kind: str, ids: list[int], at: int, skips: bool, stop: str | None) -> None:
    tokenizer = KINDS[kind]
    prompt, rest = ids[: min(at, len(ids) - 1)], ids[min(at, len(ids) - 1) :]
    params = SamplingParams(stop=stop, skip_special_tokens=skips, output_kind=RequestOutputKind.DELTA)
    begun = tokenizer.settled_text(prompt, skips)
    whole = tokenizer.decode(ids, skips)
    assert whole.startswith(begun)
    expected = whole[len(begun) :]
    if stop is not None:
        expected = expected.partition(stop)[0]
    assert answer(tokenizer, prompt, rest, params) == expected


@pytest.mark.parametrize("prompt", [[], [1]])
def test_a_begin_token_that_is_not_shown_is_no_text(prompt: list[int]) -> None:
    tokenizer = KINDS["byte-fallback"]
    (word,) = (one or 0 for one in tokenizer.convert_tokens_to_ids(["▁ab"]))
    params = SamplingParams(output_kind=RequestOutputKind.DELTA)
    assert answer(tokenizer, prompt, [word, word], params) == "ab ab"
    assert answer(tokenizer, [word], [word, word], params) == " ab ab"


@settings(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.integers(0, 275), min_size=1, max_size=30),
    cuts=st.sets(st.integers(1, 29)),
    stop=st.one_of(st.none(), st.text("ab h", min_size=1, max_size=2)),
    min_tokens=st.integers(0, 6),
    reason=st.sampled_from(["stop", "length"]),
)
def test_tokens_that_come_together_read_as_if_they_had_come_one_by_one(
    ids: list[int], cuts: set[int], stop: str | None, min_tokens: int, reason: FinishReason
) -> None:
    def read(runs: list[list[int]]) -> CompletionOutput:
        params = SamplingParams(stop=stop, logprobs=0, min_tokens=min_tokens, output_kind=RequestOutputKind.CUMULATIVE)
        request = Request("0", [0], params, seed=0, arrival_time=0.0, max_output_tokens=99)
        sequence = Sequence(SequenceId(0), request, 0, [0])
        request.sequences.append(sequence)
        made = RequestText(request, KINDS["byte-level"])
        for number, run in enumerate(runs, 1):
            sequence.finish_reason = reason if number == len(runs) else None
            rows = [LogprobRow([token_id], [-0.5], 1) for token_id in run]
            if made.extend(SequenceUpdate(sequence, run, rows, []), 0.0) is not None:
                break
        output = made.output(0.0)
        assert output is not None
        return output.outputs[0]

    places = sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
    together = read([ids[start:end] for start, end in pairwise(places)])
    assert together == read([[token_id] for token_id in ids])
    assert together.logprobs is not None
    assert len(together.logprobs) == len(together.token_ids)
