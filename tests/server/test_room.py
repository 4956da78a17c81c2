"""What one request may use of a front end: counted at admission, refused with the number, and released."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import msgspec
import pytest
from msgspec import UNSET, UnsetType

from octavo.server import serving
from octavo.server.json_pieces import LazyList, json_pieces
from octavo.server.logprob_room import LogprobRoom
from octavo.server.serving import ValueCount, parse
from octavo.shown import shown
from tests.server.scripted_engine import ScriptedEngine, app_of, call, post

HELLO = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("path", "body", "num"),
    [
        ("/v1/completions", {"prompt": [[7] * 50] * 4, "prompt_logprobs": 4, "max_tokens": 1}, 4 * 50 * 5),
        ("/v1/completions", {"prompt": "Hi", "n": 4, "max_tokens": 60, "logprobs": 4}, 4 * 60 * 5),
        (
            "/v1/completions",
            {"prompt": [[7] * 50] * 4, "echo": True, "logprobs": 4, "max_tokens": 1, "stream": True},
            1000,
        ),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "n": 4, "logprobs": True, "top_logprobs": 5, "max_tokens": 60},
            1440,
        ),
    ],
)
def test_too_many_logprobs_are_refused_with_their_number(path: str, body: Any, num: int) -> None:
    answer = post(app_of(max_logprobs_per_request=num - 1), path, body)
    assert answer.status == 400
    assert f"could hold {num} log-probabilities" in answer.error["message"]
    assert f"allowed are {num - 1}" in answer.error["message"]
    assert "--max-logprobs-per-request" in answer.error["message"]
    assert post(app_of(max_logprobs_per_request=num), path, body).status == 200


def test_a_stream_holds_none_of_its_own_tokens_logprobs() -> None:
    body = {"prompt": "Hi", "n": 4, "max_tokens": 60, "logprobs": 4, "stream": True}
    assert post(app_of(max_logprobs_per_request=10), "/v1/completions", body).status == 200


def test_choices_are_bounded() -> None:
    body = {"prompt": ["Hi"] * 3, "n": 4, "max_tokens": 1}
    answer = post(app_of(max_choices_per_request=11), "/v1/completions", body)
    assert answer.status == 400
    assert "asks for 12 choices (3 prompts x n = 4), allowed are 11" in answer.error["message"]


@pytest.mark.parametrize(
    "more",
    [
        {"bad_words": ["x" * 1000] * 10},
        {"logit_bias": {str(one): 1 for one in range(4000)}},
        {"stop_token_ids": [7] * 4000},
    ],
)
def test_what_goes_with_each_prompt_is_bounded(more: dict[str, Any]) -> None:
    body = {"max_tokens": 1, **more}
    assert post(app_of(), "/v1/completions", body | {"prompt": ["Hi"] * 10}).status == 200
    answer = post(app_of(), "/v1/completions", body | {"prompt": ["Hi"] * 100})
    assert answer.status == 400
    assert "which go with each of them; allowed are 262144" in answer.error["message"]


def test_room_is_given_in_turn_and_back() -> None:
    async def story() -> None:
        room, told = LogprobRoom(100_000), []

        async def use(name: str, num: int) -> None:
            with await room.take(num):
                told.append(name)
                await asyncio.sleep(0.01)

        first = asyncio.create_task(use("first", 80_000))
        await asyncio.sleep(0)
        second = asyncio.create_task(use("second", 90_000))
        leaver = asyncio.create_task(use("leaver", 90_000))
        third = asyncio.create_task(use("third", 20_000))
        await asyncio.sleep(0)
        await use("few", 10)
        leaver.cancel()
        await asyncio.gather(first, second, third)
        assert told == ["first", "few", "second", "third"]
        with await room.take(100_000):
            pass

    asyncio.run(asyncio.wait_for(story(), 10))


def test_room_is_given_back_by_whoever_fails_or_leaves() -> None:
    body = {"prompt": [[7] * 100] * 40, "prompt_logprobs": 5, "max_tokens": 1}
    num = 40 * 100 * 6
    engine = ScriptedEngine(fault=RuntimeError("no"))
    app = app_of(engine, max_logprobs_per_request=num)
    for _ in range(3):  # there is room for two
        assert post(app, "/v1/completions", body).status == 500
    engine.fault = None
    for _ in range(3):
        answer = post(app, "/v1/completions", body)
        assert answer.status == 200
        assert len(answer.chunks) > 1, "it is sent in pieces"
        assert len(answer.body) == int(answer.headers["content-length"])
        assert len(answer.json()["choices"][39]["prompt_logprobs"]) == 100


@pytest.mark.parametrize("stop", ["stop_token_ids", "allowed_token_ids"])
def test_lists_of_ids_are_bounded(stop: str) -> None:
    answer = post(app_of(), "/v1/completions", {"prompt": "Hi", stop: [7] * 5000})
    assert answer.status == 400
    assert f"{stop} holds 5000 token ids, allowed are 4096" in answer.error["message"]


def test_a_body_of_too_many_values_is_refused() -> None:
    app = app_of(max_body_values=1000)
    assert post(app, "/tokenize", {"prompt": "a, [b]: {c}" * 5000}).status == 200
    assert post(app, "/detokenize", {"tokens": [7] * 900}).status == 200
    answer = post(app, "/detokenize", {"tokens": [7] * 1100})
    assert answer.status == 413
    assert "allowed are 1000" in answer.error["message"]


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ([1, 2, 3], 1 + 10 + 2),
        ({"a": "x, [y]: {z}", "b": []}, 1 + 10 + 10 + 1 + 10 + 10),
        ({'q"uo,te': "\\", "b": '\\",[', "c": "\n,"}, 1 + 10 + 30 + 2),
        ("é, ü" * 40_000, 1),
        (["\\" * 70_000 + ","] * 3, 1 + 10 + 2),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 2**16, 2**22])
def test_values_are_counted_and_texts_are_not(value: Any, count: int, size: int) -> None:
    data = json.dumps(value, separators=(",", ":")).encode()
    if size < 2**16 and len(data) > 1000:
        return
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    values = ValueCount()
    for chunk in chunks:
        values.add(chunk)
    assert asyncio.run(values.is_above(count, chunks)) == 0
    assert asyncio.run(values.is_above(count - 1, chunks)) == count


class Part(msgspec.Struct):
    name: str
    more: list[int] | UnsetType = UNSET


@pytest.mark.parametrize(
    "value",
    [
        Part("a"),
        Part("a", [1] * 100),
        [Part("b", [number] * number) for number in range(80)],
        {"a": [], "b": {}, "c": None, "d": [None, None, 1.5, 2]},
        [None, {"x": 1}, {str(number): [number] for number in range(50)}],
        'long \u00e9\U0001f44b"\\\n' * 60_000,
        list(range(40_000)),
        ["text"] * 100,
        [1, "a", None, True] * 20,
    ],
)
def test_pieces_joined_are_the_json(value: Any) -> None:
    assert b"".join(json_pieces(value)) == msgspec.json.encode(value)
    if isinstance(value, list):
        lazy = {"lazy": LazyList(iter(value))}
        assert b"".join(json_pieces(lazy)) == msgspec.json.encode({"lazy": value})


def test_a_shown_value_is_looked_at_no_further_than_it_is_shown() -> None:
    assert shown({"a": [1, "b"]}) == "{'a': [1, 'b']}"
    huge = [[{"a": "b" * 10_000_000}] * 1000] * 1000
    assert len(shown(huge)) == 100
    assert shown(10**5000) == "a number of 16610 bits"
    assert len(shown("x" * 10_000_000)) == 80


def test_large_bodies_are_read_one_in_each_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    story: list[str] = []

    def noted(body: bytes, kind: Any) -> Any:
        story.append("body")
        return parse(body, kind)

    async def turns() -> None:
        while story.count("body") < 20:
            story.append("turn")
            await asyncio.sleep(0)

    async def all_at_once() -> None:
        app, data = app_of(), json.dumps({"tokens": [7] * 100_000}).encode()
        calls = (call(app, "POST", "/detokenize", data, {"content-type": "application/json"}) for _ in range(20))
        await asyncio.gather(*calls, turns())

    monkeypatch.setattr(serving, "parse", noted)
    asyncio.run(asyncio.wait_for(all_at_once(), 30))
    assert story.count("body") == 20
    assert all(pair != ("body", "body") for pair in itertools.pairwise(story))
