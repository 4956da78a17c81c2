"""What `octavo run` is asked: prompts from the command line, a file or a pipe, ready for the engine.

A file holds one prompt a line, or one JSON object a line (JSONL):

    {"prompt": "Once upon"}
    {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5, "max_tokens": 20}
    {"prompt_token_ids": [1, 2, 3]}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.cli.sampling_flags import overlay
from octavo.errors import InvalidRequestError
from octavo.sampling_params import SamplingParams

Message = Mapping[str, Any]
EncodeChat = Callable[[Sequence[Message]], Sequence[int]]

_PROMPT_KEYS = ("prompt", "messages", "prompt_token_ids")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to be. `given` is what the user wrote, to be repeated in JSONL output."""

    prompt: str | Sequence[int]
    given: dict[str, Any]
    sampling_params: SamplingParams

    @property
    def title(self) -> str:
        """One line to recognise it by."""
        if "messages" in self.given:
            return " ".join(str(self.given["messages"][-1]["content"]).split())
        return " ".join(str(self.given.get("prompt", "token ids")).split())


@dataclass(frozen=True, slots=True)
class AskReader:
    """Turns what the user wrote into asks.

    encode_chat: the model's chat template; None where prompts are completed as they are.
    sampling_params: for every ask, changed by what a JSONL line says. system: put before every prompt.
    """

    encode_chat: EncodeChat | None
    sampling_params: SamplingParams
    system: str | None = None

    def from_text(self, text: str) -> Ask:
        return self._ask({"prompt": text}, "", {})

    def from_messages(self, messages: list[Message]) -> Ask:
        return self._ask({"messages": messages}, "", {})

    def from_lines(self, lines: Iterable[str], source: str) -> list[Ask]:
        """One ask a line; empty lines are left out. JSONL if the first line is a JSON object with a prompt."""
        numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
        if not numbered:
            raise InvalidRequestError(f"{source} holds no prompt, allowed is one a line, as text or as a JSON object")
        if not _is_jsonl(numbered[0][1]):
            return [self.from_text(line) for _, line in numbered]
        return [self._from_json(line, f"{source}, line {number}: ") for number, line in numbered]

    def _from_json(self, line: str, where: str) -> Ask:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidRequestError(f"{where}not valid JSON: {error}") from None
        if not isinstance(row, dict) or sum(key in row for key in _PROMPT_KEYS) != 1:
            raise InvalidRequestError(f"{where}allowed is an object with exactly one of {', '.join(_PROMPT_KEYS)}")
        given = {key: row.pop(key) for key in _PROMPT_KEYS if key in row}
        return self._ask(given, where, row)

    def _ask(self, given: dict[str, Any], where: str, options: dict[str, Any]) -> Ask:
        params = overlay(self.sampling_params, options, where)
        if "prompt_token_ids" in given:
            return Ask(given["prompt_token_ids"], given, params)
        if "prompt" in given and not isinstance(given["prompt"], str):
            raise InvalidRequestError(f"{where}prompt is {given['prompt']!r}, allowed is a string")
        if "messages" not in given and self.encode_chat is None:
            return Ask(given["prompt"], given, params)
        if self.encode_chat is None:
            raise InvalidRequestError(
                f"{where}messages need a chat template; this model has none, or --raw was given: use prompt"
            )
        messages = given["messages"] if "messages" in given else [{"role": "user", "content": given["prompt"]}]
        if not isinstance(messages, list) or not messages or any(not isinstance(one, dict) for one in messages):
            raise InvalidRequestError(f"{where}messages is {messages!r}, allowed is a list of role/content objects")
        if self.system is not None and messages[0].get("role") != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        try:
            return Ask(self.encode_chat(messages), given, params)
        except InvalidRequestError as refusal:
            raise InvalidRequestError(f"{where}{refusal}") from None


def _is_jsonl(line: str) -> bool:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return False
    return isinstance(row, dict) and any(key in row for key in _PROMPT_KEYS)
