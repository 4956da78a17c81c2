"""One streamed answer: its times, tokens and faults, however the bytes are split."""

import json
from typing import Any

import pytest

from octavo.bench.answer import Answer, AnswerReader


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def completion(text: str, finish_reason: str | None = None, index: int = 0) -> bytes:
    return event(choices=[{"index": index, "text": text, "finish_reason": finish_reason}])


def chat(finish_reason: str | None = None, **delta: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": finish_reason}])


CACHED = {"cached_tokens": 3}
USAGE = event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": CACHED})
DONE = b"data: [DONE]\n\n"


def read(*timed: tuple[float, bytes], keep_text: bool = False) -> Answer:
    answer = Answer(0, start=10.0)
    reader = AnswerReader(answer, keep_text)
    for now, body in timed:
        reader.feed(body, now)
    reader.end(num_prompt_tokens=4)
    return answer


def test_times_are_of_pieces_and_tokens_of_the_usage() -> None:
    answer = read(
        (11.0, completion("a")),
        (11.5, completion("bcd")),
        (13.0, completion("e", "length")),
        (13.1, USAGE + DONE),
        keep_text=True,
    )
    assert answer.ttft == 1.0
    assert answer.e2el == 3.0
    assert list(answer.gaps) == [0.5, 1.5]
    assert (answer.num_prompt_tokens, answer.num_output_tokens, answer.num_pieces) == (9, 5, 3)
    assert answer.num_cached_tokens == 3
    assert answer.text == "abcde"
    assert not answer.error


@pytest.mark.parametrize("size", [1, 7, 64])
def test_bytes_may_be_cut_anywhere(size: int) -> None:
    body = b": ping\r\n\r\n" + completion("a").replace(b"\n", b"\r\n") + completion("ü", "stop") + USAGE + DONE
    answer = read(*((11.0, body[at : at + size]) for at in range(0, len(body), size)), keep_text=True)
    assert answer.text == "aü"
    assert answer.num_output_tokens == 5
    assert not answer.error


def test_a_chats_opening_event_is_no_token() -> None:
    answer = read(
        (11.0, chat(role="assistant", content="")), (12.0, chat(content="Hi")), (14.0, chat("stop")), (14.0, DONE)
    )
    assert answer.ttft == 2.0
    assert answer.e2el == 4.0
    assert answer.num_pieces == 1


@pytest.mark.parametrize(
    "delta", [{"reasoning_content": "hm"}, {"reasoning": "hm"}, {"tool_calls": [{"index": 0, "function": {}}]}]
)
def test_thoughts_and_tool_calls_are_tokens(delta: dict[str, Any]) -> None:
    assert read((11.0, chat(**delta)), (11.0, chat("stop") + DONE)).num_pieces == 1


def test_nulls_and_empty_lists_say_nothing() -> None:
    nothing = event(error=None, usage=None, choices=[{"delta": {"content": None, "tool_calls": []}}])
    answer = read((11.0, nothing), (12.0, chat(content="a")), (12.0, chat("stop") + DONE))
    assert not answer.error
    assert answer.ttft == 2.0


def test_a_token_without_a_whole_character_counts() -> None:
    answer = read((11.0, completion("")), (12.0, completion("é")), (13.0, completion("", "length") + DONE))
    assert answer.ttft == 1.0
    assert answer.num_pieces == 2


def test_gaps_are_within_a_choice() -> None:
    both = completion("a", index=0), completion("b", index=1)
    answer = read((11.0, both[0]), (11.2, both[1]), (12.0, both[0]), (12.3, both[1] + DONE))
    assert list(answer.gaps) == pytest.approx([1.0, 1.1])


def test_an_event_in_several_lines_is_one() -> None:
    answer = read((11.0, b"event: x\nid: 3\n" + completion("a", "stop")), (11.0, DONE))
    assert answer.num_pieces == 1


def test_without_usage_pieces_are_counted() -> None:
    answer = read((11.0, completion("a")), (12.0, completion("b", "stop") + DONE))
    assert not answer.has_usage
    assert (answer.num_prompt_tokens, answer.num_output_tokens) == (4, 2)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (completion("a"), "the stream ended before the answer did"),
        (b"", "the stream ended before the answer did"),
        (completion("a") + event(error={"message": "out of memory"}) + DONE, '{"message":"out of memory"}'),
        (b"data: {nonsense\n\n" + DONE, "an unreadable event"),
        (b'data: {"choices": 3}\n\n' + DONE, "an unreadable event"),
    ],
)
def test_a_broken_stream_is_a_failure(body: bytes, problem: str) -> None:
    assert read((11.0, body)).error.startswith(problem)
