"""Prompts from arguments and files, and the errors for bad ones."""

from collections.abc import Sequence

import pytest

from octavo.cli.run_requests import Message, RequestReader
from octavo.errors import InvalidRequestError
from octavo.sampling_params import SamplingParams

RAW = RequestReader(None, SamplingParams())


def encode(messages: Sequence[Message]) -> list[int]:
    """A template that can be decoded: one number per character."""
    return list("|".join(f"{one['role']}:{one['content']}" for one in messages).encode())


CHAT = RequestReader(encode, SamplingParams())


def decoded(prompt: object) -> str:
    return bytes(prompt).decode()  # type: ignore[call-overload, no-any-return]


def test_text_goes_through_the_template_or_as_it_is() -> None:
    assert RAW.from_text("Hi", 0).prompt == "Hi"
    assert decoded(CHAT.from_text("Hi", 0).prompt) == "user:Hi"


def test_a_system_message_comes_first_unless_there_is_one() -> None:
    reader = RequestReader(encode, SamplingParams(), system="Be brief.")
    assert decoded(reader.from_text("Hi", 0).prompt) == "system:Be brief.|user:Hi"
    own = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}]
    assert decoded(reader.from_messages(own, 0).prompt) == "system:Rhyme.|user:Hi"


def test_lines_of_text() -> None:
    requests = RAW.from_lines(["one\n", "\n", "  two \n", "{not json\n"], "prompts.txt")
    assert [request.prompt for request in requests] == ["one", "two", "{not json"]


def test_lines_of_json() -> None:
    lines = [
        '{"prompt": "one", "temperature": 0.5}',
        '{"messages": [{"role": "user", "content": "two"}], "max_tokens": 3}',
        '{"prompt_token_ids": [1, 2]}',
    ]
    requests = CHAT.from_lines(lines, "prompts.jsonl")
    assert decoded(requests[0].prompt) == "user:one"
    assert requests[0].sampling_params.temperature == 0.5
    assert requests[1].sampling_params.max_tokens == 3
    assert requests[2].prompt == [1, 2]
    assert [request.title for request in requests] == ["one", "two", "token ids"]
    assert requests[0].given == {"prompt": "one"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not valid JSON"),
        ("[]", "is not an object, allowed is one with exactly one of prompt, messages, prompt_token_ids"),
        ('{"temperature": 1}', "exactly one of"),
        ('{"prompt": "a", "messages": []}', "exactly one of"),
        ('{"prompt": "a", "top_q": 1}', "unknown key 'top_q'"),
        ('{"prompt": "a", "top_p": 2}', "top_p is 2"),
        ('{"prompt": 3}', "prompt is 3"),
        ('{"messages": "Hi"}', "messages"),
    ],
)
def test_a_bad_line_is_named(line: str, problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^f\.jsonl, line 2: .*{problem}"):
        RAW.from_lines(['{"prompt": "fine"}', line], "f.jsonl")


def test_nothing_to_do_is_said() -> None:
    with pytest.raises(InvalidRequestError, match="standard input holds no prompt"):
        RAW.from_lines(["\n"], "standard input")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": 5}', "pipe, line 2: prompt is 5, allowed is a string"),
        ('{"messages": [{"role": "user"}]}', "pipe, line 2: no content"),
    ],
)
def test_a_line_that_the_template_refuses_is_named(line: str, message: str) -> None:
    def refuse(messages: Sequence[Message]) -> list[int]:
        if "content" not in messages[0]:
            raise InvalidRequestError("no content")
        return [1]

    with pytest.raises(InvalidRequestError, match=message):
        RequestReader(refuse, SamplingParams()).from_lines(['{"prompt": "fine"}', line], "pipe")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"promt": "x"}', r"line 1: unknown key 'promt'; did you mean 'prompt'\?"),
        ('hello\n{"prompt": "x"}', "line 1: not valid JSON.*hello; line 2 is"),
        ('{"prompt": "x"}\nhello', "line 2: not valid JSON.*hello; line 1 is"),
        ('{"prompt": "x"}\n[1]', r"line 2: \[1\] is not an object"),
        ('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}', "'body' is .*octavo run-batch"),
        ('{"prompt": "x", "model": "m"}', "line 1: unknown key 'model'"),
        ('{"prompt": "x", "prompt": "y"}', "line 1: .*'prompt' appears twice"),
        ('{"prompt": "x", "temperature": NaN}', "line 1: .*NaN is not a JSON number"),
        ("{'prompt': 'x'}", "line 1: not valid JSON"),
        ('{"prompt": "x",}', "line 1: not valid JSON"),
        ('[\n  {"prompt": "x"}\n]', "is one JSON list, allowed is one object per line"),
        ('{\n  "prompt": "x"\n}', "is one JSON object, allowed is one object per line"),
        ('{"prompt": ' + "[" * 5000, "nested too deeply|exactly|not valid"),
        ('{"prompt_token_ids": ["a"]}', "prompt_token_ids is"),
    ],
)
def test_what_was_meant_as_json_is_not_answered_as_text(text: str, problem: str) -> None:
    if text.endswith("["):
        text = f'{{"prompt": "x"}}\n{text}'
    with pytest.raises(InvalidRequestError, match=problem):
        RAW.from_lines(text.split("\n"), "asked")


@pytest.mark.parametrize("text", ["[1, 2, 3] goes on how?", '"Hi," she said.', "42", "{a} is a set", "true", "{}?"])
def test_a_text_may_look_a_little_like_json(text: str) -> None:
    assert [request.prompt for request in RAW.from_lines([text], "asked")] == [text]


def test_a_file_named_jsonl_is_jsonl() -> None:
    with pytest.raises(InvalidRequestError, match=r"asked\.jsonl, line 1: not valid JSON"):
        RAW.from_lines(["Why?"], "asked.jsonl")


def test_lines_may_end_as_they_do_elsewhere() -> None:
    lines = ['{"prompt": "a\u2028b"}\r\n', "\r\n", '{"prompt": "c"}\r\n', "\n"]
    assert [request.prompt for request in RAW.from_lines(lines, "asked")] == ["a\u2028b", "c"]


def test_equal_prompts_have_seeds_of_their_own_and_the_same_ones_again() -> None:
    reader = RequestReader(None, SamplingParams(), seed=7)
    assert [request.sampling_params.seed for request in reader.from_texts(["a", "a", "a"])] == [7, 8, 9]
    lines = ['{"prompt": "a"}', '{"prompt": "a", "seed": 1}']
    assert [request.sampling_params.seed for request in reader.from_lines(lines, "asked")] == [7, 1]
    last = RequestReader(None, SamplingParams(), seed=2**63 - 1)
    assert [request.sampling_params.seed for request in last.from_texts(["a", "a"])] == [2**63 - 1, 0]


def test_a_message_without_content_has_a_title() -> None:
    reader = RequestReader(lambda messages: [1], SamplingParams())
    (request,) = reader.from_lines(['{"messages": [{"role": "assistant", "tool_calls": []}]}'], "asked")
    assert request.title == "None"
