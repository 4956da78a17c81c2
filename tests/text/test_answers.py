"""Calls and thoughts in answers: each format read back exactly, whole and cut anywhere; what is broken stays text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from octavo.text.answers.events import CallBroken, CallGrown, Event, Said
from octavo.text.answers.feed import Feed, Steps
from octavo.text.answers.formats import FORMATS, read_calls
from octavo.text.answers.harmony import read_harmony
from octavo.text.answers.parser import Answer, AnswerParser, FunctionCall, answer_of
from octavo.text.answers.thinking import ThoughtMarks, read_thoughts
from tests.text.tokenizers import packaged
from tests.text.written_calls import WRITERS, Call, mistral_v11

SCHEMA = {
    "type": "object",
    "properties": {
        "count": {"type": "integer"},
        "price": {"type": "number"},
        "text": {"type": "string"},
        "is_new": {"type": "boolean"},
        "tags": {"type": "array"},
        "inner": {"type": "object"},
        "nothing": {"type": ["string", "null"]},
        "anything": {},
    },
}
FUNCTIONS: dict[str, Any] = {"add": SCHEMA, "geo.find_city": SCHEMA, "now": {"type": "object", "properties": {}}}
CALLS: list[list[Call]] = [
    [("add", {"count": -3, "text": 'café {"a": [1]} \\ "quoted"\nline', "tags": [1, "b", {"c": None}]})],
    [("geo.find_city", {"price": 2.5, "is_new": True, "inner": {"k": [[], {}]}, "nothing": None}), ("now", {})],
    [("add", {"text": "<b>1 < 2</b> </tool"}), ("add", {"anything": 7, "text": ""}), ("add", {"text": "null"})],
]
#: formats that cannot write some text: nothing marks its end
PROSE = "I will look.\n\nOne moment: {x} [y] <z>"


def reader(name: str) -> Callable[[Feed], Steps[None]]:
    return read_harmony if name == "openai" else lambda feed: read_calls(feed, FORMATS[name])


def read(name: str, pieces: Iterable[str], max_calls: int | None = None) -> tuple[Answer, list[Event]]:
    parser = AnswerParser(reader(name), FUNCTIONS, max_calls)
    events = [event for piece in pieces for event in parser.push(piece)]
    events += parser.finish()
    return answer_of(events), events


def named(calls: Iterable[FunctionCall]) -> list[Call]:
    return [(one.name, json.loads(one.arguments)) for one in calls]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("calls", CALLS)
def test_calls_are_read_back_wherever_the_text_is_cut(name: str, calls: list[Call]) -> None:
    text = WRITERS[name](calls)
    whole, events = read(name, [text])
    assert (named(whole.calls), whole.content, whole.reasoning) == (calls, "", "")
    assert json.dumps(named(whole.calls)) == json.dumps(calls)  # 1 is not 1.0 or true
    for cut in range(1, len(text)):
        assert read(name, [text[:cut], text[cut:]])[0].calls == whole.calls, cut
    assert read(name, text)[0].calls == whole.calls
    assert not any(isinstance(event, CallBroken) for event in events)


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("llama3_json", "pythonic", "openai")])
def test_text_before_calls_is_content(name: str) -> None:
    written = WRITERS[name](CALLS[0])
    for text in (f"{PROSE}\n{written}", f"{PROSE}\n\n{written}\n"):
        for pieces in ([text], text):
            answer, _ = read(name, pieces)
            assert (answer.content, named(answer.calls)) == (PROSE, CALLS[0])


@pytest.mark.parametrize("name", WRITERS)
def test_truncated_calls_are_content(name: str) -> None:
    """What is read of a prefix is whole calls, in order; no call is read from a part of itself."""
    text = WRITERS[name](CALLS[1])
    for end in range(len(text)):
        answer, _ = read(name, [text[:end]])
        found = named(answer.calls)
        assert found == CALLS[1][: len(found)]
        if not found and name != "openai":
            assert answer.content == text[:end].rstrip() or answer.content == text[:end]
        if len(found) == len(CALLS[1]):
            assert not answer.content, "a part of the mark that closes calls is no text"
        assert read(name, text[:end])[0] == answer, end


@pytest.mark.parametrize("name", WRITERS)
def test_an_unknown_function_is_content(name: str) -> None:
    text = WRITERS[name]([("sub", {"text": "x"})])
    answer, events = read(name, [text])
    assert not answer.calls
    assert not any(isinstance(event, CallGrown) for event in events)
    assert "sub" in answer.content or name == "openai"


@pytest.mark.parametrize("name", WRITERS)
def test_arguments_are_given_out_as_they_come(name: str) -> None:
    """Pieces of a long text arrive before its end, where the format allows it."""
    calls: list[Call] = [("add", {"text": "word " * 50})]
    text = WRITERS[name](calls)
    _, events = read(name, text)
    num = sum(isinstance(event, CallGrown) for event in events)
    assert num == 1 if name in ("pythonic", "llama4_pythonic", "gemma4", "functiongemma") else num > 100


def test_one_call_is_kept_where_more_are_not_wanted() -> None:
    for name, write in WRITERS.items():
        answer, _ = read(name, write(CALLS[2]), max_calls=1)
        assert named(answer.calls) == CALLS[2][:1], name


def test_mistrals_calls_may_have_marks_of_their_own() -> None:
    text = mistral_v11(CALLS[1])
    for pieces in ([text], text):
        assert named(read("mistral", pieces)[0].calls) == CALLS[1]
    answer, _ = read("mistral", "[TOOL_CALLS]now[CALL_ID]abcdef123[ARGS]{}")
    assert answer.calls == [FunctionCall("now", "{}", "abcdef123")]


def test_kimis_calls_are_numbered_by_the_model() -> None:
    assert [one.given_id for one in read("kimi_k2", WRITERS["kimi_k2"](CALLS[1]))[0].calls] == [
        "functions.geo.find_city:0",
        "functions.now:1",
    ]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"arguments": {"count": 1}, "name": "add"}', {"count": 1}),
        ('{"name": "add", "arguments": "{\\"count\\": 1}"}', {"count": 1}),
        ('{"type": "function", "id": "x", "name": "add", "parameters": {"count": 1}}', {"count": 1}),
        ('{"name": "now"}', {}),
        ('{"name": "now", "arguments": null}', {}),
        ('[{"name": "now", "arguments": ""}]', {}),
    ],
)
def test_objects_may_be_written_otherwise(text: str, arguments: dict[str, Any]) -> None:
    answer, _ = read("hermes", f"<tool_call>{text}</tool_call>")
    assert [json.loads(one.arguments) for one in answer.calls] == [arguments]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call></tool_call>",
        "<tool_call>add</tool_call>",
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": 1,}}</tool_call>',
        '<tool_call>{"name": ["add"], "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": ' + '{"a":' * 70 + "1" + "}" * 71 + "</tool_call>",
        '<tool_call>{"name": "add", "arguments": {"a": ' + "1" * 5000 + "}}</tool_call>",
    ],
)
def test_broken_objects_are_content(text: str) -> None:
    for pieces in ([text], text):
        answer, _ = read("hermes", pieces)
        assert (answer.content, answer.calls) == (text, [])


def test_text_goes_on_behind_a_broken_call_and_later_calls_count() -> None:
    text = f'<tool_call>{{"name": oops</tool_call>\nAgain:\n{WRITERS["hermes"](CALLS[0])}'
    for pieces in ([text], text):
        answer, _ = read("hermes", pieces)
        assert answer.content == '<tool_call>{"name": oops</tool_call>\nAgain:'
        assert named(answer.calls) == CALLS[0]


def test_json_and_lists_that_are_no_calls_are_content() -> None:
    for name, text in (("llama3_json", '{"city": "Rome"}'), ("pythonic", "[1, 2] and [link](x)")):
        assert read(name, text)[0] == Answer(content=text)


@pytest.mark.parametrize(
    "text", ["[add(1)]", "[add(**x)]", "[add(count=f())]", "[add(count=" + "-" * 5000 + "1)]", "[add(count=1j)]"]
)
def test_python_that_is_no_call_with_literals_is_content(text: str) -> None:
    assert read("pythonic", [text])[0] == Answer(content=text)


@pytest.mark.parametrize("name", WRITERS)
def test_any_text_is_read_alike_whole_and_in_pieces(name: str) -> None:
    """Random mixtures of a format's own parts: nothing fails, nothing depends on the cuts."""
    rng = random.Random(7)
    source = WRITERS[name](CALLS[1]) + PROSE
    parts = [source[at : at + 9] for at in range(0, len(source), 7)] + ["<", '"', "\\", "{", "}", "[", ")", "\n", " "]
    for _ in range(70):
        text = "".join(rng.choices(parts, k=rng.randrange(1, 14)))
        whole = read(name, [text])[0]
        cuts = sorted(rng.sample(range(len(text) + 1), min(4, len(text))))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert read(name, pieces)[0] == whole, text
        for one in whole.calls:
            assert isinstance(json.loads(one.arguments), dict)


# Thoughts

MARKS = ThoughtMarks("<think>", "</think>")


@pytest.mark.parametrize(
    ("state", "text", "answer"),
    [
        ("open", "<think>\nHm.\n</think>\n\nYes.", Answer("\nHm.\n", "Yes.")),
        ("open", "  Yes.", Answer("", "  Yes.")),
        ("begun", "Hm.</think>Yes.", Answer("Hm.", "Yes.")),
        ("begun", "<think>Hm.</think>Yes.", Answer("Hm.", "Yes.")),
        ("begun", "Hm. </thin", Answer("Hm. </thin", "")),
        ("ended", "<think>Yes.", Answer("", "<think>Yes.")),
        ("open", "<thin ice>", Answer("", "<thin ice>")),
        ("open", "", Answer()),
    ],
)
def test_thoughts_are_told_from_content(state: Any, text: str, answer: Answer) -> None:
    def steps(feed: Feed) -> Steps[None]:
        yield from read_thoughts(feed, MARKS, state)
        yield from read_calls(feed, FORMATS["hermes"])

    for pieces in ([text], list(text), [text[:5], text[5:]]):
        parser = AnswerParser(steps, FUNCTIONS)
        events = [event for piece in pieces for event in parser.push(piece)]
        assert answer_of(events + parser.finish()) == answer


def test_tokens_of_thoughts_are_counted_in_characters_of_several_tokens() -> None:
    tokenizer = packaged("smollm2")
    thoughts = "Hm, \u65e5\u672c\u8a9e <b>\U0001f600\U0001f937\u200d\u2642\ufe0f well."
    begin, middle, end = (
        tokenizer.encode(text, add_special_tokens=False) for text in ("<think>", thoughts, "</think> A")
    )
    text = tokenizer.decode(begin + middle + end)
    for state, token_ids, said in (("open", begin + middle + end, text), ("begun", middle + end, text[7:])):
        parser = AnswerParser(lambda feed, state=state: read_thoughts(feed, MARKS, state), FUNCTIONS)  # type: ignore[misc]
        for piece in (said[:9], said[9:]):
            parser.push(piece)
        parser.finish()
        assert parser.num_thought_tokens(token_ids, tokenizer.token_widths) == len(middle)
    assert AnswerParser(reader("hermes"), FUNCTIONS).num_thought_tokens([1, 2], {}) == 0


def test_the_prompts_end_says_whether_thoughts_have_begun() -> None:
    assert MARKS.state("<|im_start|>assistant\n<think>\n") == "begun"
    assert MARKS.state("assistant\n<think>\n\n</think>\n\n") == "ended"
    assert MARKS.state("<|im_start|>assistant\n") == "open"
    assert ThoughtMarks("<think>", "</think>", is_implied=True).state("<|Assistant|>") == "begun"


def test_harmony_has_thoughts_calls_and_content_in_messages() -> None:
    text = (
        "<|channel|>analysis<|message|>Hm. <|end|><|start|>assistant<|channel|>commentary<|message|>Looking.<|end|>"
        + "<|start|>assistant"
        + WRITERS["openai"](CALLS[0])
    )
    for pieces in ([text], text):
        answer, _ = read("openai", pieces)
        assert (answer.reasoning, answer.content, named(answer.calls)) == ("Hm. ", "Looking.", CALLS[0])
    final = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.\n"
    assert read("openai", final)[0] == Answer("Hm.", "Yes.\n")
    assert read("openai", ["Plain text."])[0] == Answer("", "Plain text.")


def test_events_of_plain_text_are_its_pieces() -> None:
    _, events = read("hermes", ["One ", "two", " three"])
    assert events == [Said("One"), Said(" two"), Said(" three")]
