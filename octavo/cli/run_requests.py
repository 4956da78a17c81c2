"""The requests of `octavo run`: prompts from the command line, a file or a pipe.

A file holds one prompt per line, or one JSON object per line (JSONL):

    {"prompt": "Once upon"}
    {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5, "max_tokens": 20}
    {"prompt_token_ids": [1, 2, 3]}

A broken JSON line must not be answered as if it were text, so ambiguous lines are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.cli.sampling_flags import FLAGS, overlay, seed_of
from octavo.errors import InvalidRequestError
from octavo.sampling_params import SamplingParams
from octavo.shown import cut, suggestion

PROMPT_KEYS = ("prompt", "messages", "prompt_token_ids")
#: of a line in OpenAI's batch format
_BATCH_KEYS = frozenset({"custom_id", "method", "url", "body"})
_JSONL_ENDINGS = (".jsonl", ".ndjson")
_CURE = 'put such a text into {"prompt": "..."}'

Message = Mapping[str, Any]
EncodeChat = Callable[[Sequence[Message]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One request. `given` is what the user wrote, repeated in JSONL output."""

    prompt: str | Sequence[int]
    given: dict[str, Any]
    sampling_params: SamplingParams

    @property
    def title(self) -> str:
        """One line that identifies it."""
        if "messages" in self.given:
            return " ".join(str(self.given["messages"][-1].get("content")).split())
        return " ".join(str(self.given.get("prompt", "token ids")).split())


@dataclass(frozen=True, slots=True)
class RequestReader:
    """Turns user input into requests.

    encode_chat: the model's chat template; None to complete raw prompts. sampling_params: for every request, overridden
    by its JSONL line. system: a message before every prompt. seed: of the first request; later ones count up from it,
    so that equal prompts get different answers. None: the engine draws seeds.
    """

    encode_chat: EncodeChat | None
    sampling_params: SamplingParams
    system: str | None = None
    seed: int | None = None

    def from_texts(self, texts: Sequence[str]) -> list[RunRequest]:
        return [self.from_text(text, index) for index, text in enumerate(texts)]

    def from_messages(self, messages: list[Message], turn: int) -> RunRequest:
        return self._request({"messages": messages}, "", {}, turn)

    def from_text(self, text: str, turn: int) -> RunRequest:
        return self._request({"prompt": text}, "", {}, turn)

    def from_lines(self, lines: Iterable[str], source: str) -> list[RunRequest]:
        """One request per line; empty lines are skipped. If any line is a JSON object, all must be."""
        numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
        if not numbered:
            raise InvalidRequestError(f"{source} holds no prompt, allowed is one per line, as text or as a JSON object")
        rows = _objects_of(numbered, source)
        if rows is None:
            return self.from_texts([line for _, line in numbered])
        return [self._from_row(row, f"{source}, line {number}: ", i) for i, (number, row) in enumerate(rows)]

    def _from_row(self, row: dict[str, Any], where: str, index: int) -> RunRequest:
        given = {key: row.pop(key) for key in PROMPT_KEYS if key in row}
        for key in row:
            if key not in FLAGS:
                raise InvalidRequestError(f"{where}unknown key {key!r}; {suggestion(key, [*PROMPT_KEYS, *FLAGS])}")
        if len(given) != 1:
            raise InvalidRequestError(f"{where}allowed is an object with exactly one of {', '.join(PROMPT_KEYS)}")
        return self._request(given, where, row, index)

    def _request(self, given: dict[str, Any], where: str, options: dict[str, Any], index: int) -> RunRequest:
        params = self._params(options, where, index)
        if "prompt_token_ids" in given:
            return RunRequest(_token_ids(given["prompt_token_ids"], where), given, params)
        if "prompt" in given and not isinstance(given["prompt"], str):
            raise InvalidRequestError(f"{where}prompt is {given['prompt']!r}, allowed is a string")
        if "messages" not in given and self.encode_chat is None:
            return RunRequest(given["prompt"], given, params)
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
            return RunRequest(self.encode_chat(messages), given, params)
        except InvalidRequestError as refusal:
            raise InvalidRequestError(f"{where}{refusal}") from None

    def _params(self, options: dict[str, Any], where: str, index: int) -> SamplingParams:
        params = overlay(self.sampling_params, options, where)
        if self.seed is None or params.seed is not None:
            return params
        return params.replace(seed=seed_of(self.seed, index))


def _token_ids(value: object, where: str) -> Sequence[int]:
    if not isinstance(value, list) or any(type(one) is not int for one in value):
        raise InvalidRequestError(f"{where}prompt_token_ids is {value!r}, allowed is a list of whole numbers")
    return value


def _objects_of(numbered: Sequence[tuple[int, str]], source: str) -> list[tuple[int, dict[str, Any]]] | None:
    """Each line's number and object; None if the lines are texts. Raises InvalidRequestError for anything else, such
    as OpenAI's batch format."""
    rows = [(number, _value_of(line)) for number, line in numbered]
    if not isinstance(rows[0][1], dict):
        _check_document(numbered, source)
    first = next((number for number, row in rows if isinstance(row, dict)), None)
    if first is None and not source.endswith(_JSONL_ENDINGS):
        _check_texts(numbered, source)
        return None
    objects = []
    for (number, row), (_, line) in zip(rows, numbered, strict=True):
        where = f"{source}, line {number}: "
        if isinstance(row, ValueError):
            other = f"; line {first} is" if first is not None else ""
            raise InvalidRequestError(f"{where}not valid JSON: {row}: {cut(line, 60)}{other}; {_CURE}")
        if not isinstance(row, dict):
            raise InvalidRequestError(
                f"{where}{cut(line, 60)} is not an object, allowed is one with exactly one of {', '.join(PROMPT_KEYS)}"
            )
        if _BATCH_KEYS & row.keys() and not set(PROMPT_KEYS) & row.keys():
            key = min(_BATCH_KEYS & row.keys())
            raise InvalidRequestError(
                f"{where}the key {key!r} is of a call in OpenAI's batch format: "
                "`octavo run-batch -i INPUT -o OUTPUT` answers those"
            )
        objects.append((number, row))
    return objects


def _check_texts(numbered: Sequence[tuple[int, str]], source: str) -> None:
    """No line is a JSON object. Refuse a line that begins and ends like one."""
    for number, line in numbered:
        if line.startswith(('{"', "{'")) and line.endswith(("}", "},")):
            problem = _value_of(line)
            raise InvalidRequestError(f"{source}, line {number}: not valid JSON: {problem}: {cut(line, 60)}; {_CURE}")


def _check_document(numbered: Sequence[tuple[int, str]], source: str) -> None:
    """Refuse a file that is one JSON value: an object, or a list of objects."""
    if numbered[0][1][0] not in "[{":
        return
    whole = _value_of("\n".join(line for _, line in numbered))
    if isinstance(whole, dict) or (isinstance(whole, list) and any(isinstance(one, dict) for one in whole)):
        raise InvalidRequestError(
            f"{source} is one JSON {'object' if isinstance(whole, dict) else 'list'}, allowed is one object per line"
        )


def _value_of(line: str) -> Any:
    """The JSON value, or the ValueError that says what is wrong."""
    try:
        return json.loads(line, object_pairs_hook=_without_twins, parse_constant=_no_constant)
    except ValueError as error:
        return error
    except RecursionError:
        return ValueError("nested too deeply")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twin!r} appears twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
