"""Prompts from people and files, and what is said about bad ones."""

from collections.abc import Sequence

import pytest

from octavo.cli.asks import AskReader, Message
from octavo.errors import InvalidRequestError
from octavo.sampling_params import SamplingParams

RAW = AskReader(None, SamplingParams())


def encode(messages: Sequence[Message]) -> list[int]:
    """A template that can be read back: one number a character."""
    return list("|".join(f"{one['role']}:{one['content']}" for one in messages).encode())


CHAT = AskReader(encode, SamplingParams())


def decoded(prompt: object) -> str:
    return bytes(prompt).decode()  # type: ignore[call-overload, no-any-return]


def test_text_goes_through_the_template_or_as_it_is() -> None:
    assert RAW.from_text("Hi").prompt == "Hi"
    assert decoded(CHAT.from_text("Hi").prompt) == "user:Hi"


def test_a_system_message_comes_first_unless_there_is_one() -> None:
    reader = AskReader(encode, SamplingParams(), system="Be brief.")
    assert decoded(reader.from_text("Hi").prompt) == "system:Be brief.|user:Hi"
    own = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}]
    assert decoded(reader.from_messages(own).prompt) == "system:Rhyme.|user:Hi"


def test_lines_of_text() -> None:
    asks = RAW.from_lines(["one\n", "\n", "  two \n", "{not json\n"], "prompts.txt")
    assert [ask.prompt for ask in asks] == ["one", "two", "{not json"]


def test_lines_of_json() -> None:
    lines = [
        '{"prompt": "one", "temperature": 0.5}',
        '{"messages": [{"role": "user", "content": "two"}], "max_tokens": 3}',
        '{"prompt_token_ids": [1, 2]}',
    ]
    asks = CHAT.from_lines(lines, "prompts.jsonl")
    assert decoded(asks[0].prompt) == "user:one"
    assert asks[0].sampling_params.temperature == 0.5
    assert asks[1].sampling_params.max_tokens == 3
    assert asks[2].prompt == [1, 2]
    assert [ask.title for ask in asks] == ["one", "two", "token ids"]
    assert asks[0].given == {"prompt": "one"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not valid JSON"),
        ("[]", "exactly one of prompt, messages, prompt_token_ids"),
        ('{"temperature": 1}', "exactly one of"),
        ('{"prompt": "a", "messages": []}', "exactly one of"),
        ('{"prompt": "a", "top_q": 1}', "unknown field 'top_q'"),
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
        AskReader(refuse, SamplingParams()).from_lines(['{"prompt": "fine"}', line], "pipe")
