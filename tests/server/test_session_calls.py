"""Calls of sessions over HTTP: streamed, and forked and pruned while they run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import FastAPI

from octavo import LLM, AsyncLLM, SamplingParams
from octavo.engine.llm_engine import EngineClient
from octavo.server.app import create_app
from octavo.server.settings import ServerSettings
from tests.processes.engines import ThreadEngine
from tests.processes.test_engine_loop import offline, served
from tests.server.scripted_engine import ScriptedEngine, app_of, call

__all__ = ["offline", "served"]  # fixtures

JSON = {"content-type": "application/json"}
SEEDED = {"max_tokens": 20, "ignore_eos": True, "return_token_ids": True, "seed": 5, "temperature": 1.0}
PARAMS = SamplingParams(max_tokens=20, ignore_eos=True)


class Client:
    """Of one session, in one event loop."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.path = "/v1/sessions"

    async def begin(self, prompt: object = "Once upon a time there was a king who") -> Client:
        self.path += "/" + (await self.ask("", prompt=prompt))["id"]
        return self

    async def ask(self, what: str, status: int = 200, **body: Any) -> Any:
        answer = await call(self.app, "POST", self.path + what, json.dumps(body).encode(), JSON)
        assert answer.status == status, answer.body
        return answer.json()

    async def stream(
        self, meanwhile: Callable[[int], Awaitable[None]] | None = None, leave_after: int | None = None, **body: Any
    ) -> list[Any]:
        data = json.dumps({"stream": True, **body}).encode()
        answer = await call(self.app, "POST", f"{self.path}/generate", data, JSON, leave_after, meanwhile)
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"].startswith("text/event-stream")
        return answer.events()

    async def read(self) -> dict[int, dict[str, Any]]:
        answer = await call(self.app, "GET", self.path, b"", {})
        return {one["branch"]: one for one in answer.json()["branches"]}


def joined(events: list[Any]) -> tuple[dict[int, str], dict[int, list[int]], dict[int, str]]:
    """Of each branch: its text, tokens and end."""
    texts: dict[int, str] = {}
    ids: dict[int, list[int]] = {}
    ends: dict[int, str] = {}
    for choice in (one for event in events if event != "[DONE]" for one in event["choices"]):
        index = choice["index"]
        assert index not in ends, "nothing comes after the end"
        texts[index] = texts.get(index, "") + choice["text"]
        ids[index] = ids.get(index, []) + (choice["token_ids"] or [])
        if choice["finish_reason"] is not None:
            ends[index] = choice["finish_reason"]
    return texts, ids, ends


def play_with(kind: str, served: ThreadEngine, play: Callable[[FastAPI, EngineClient], Awaitable[Any]]) -> Any:
    """Play against an engine on a thread of this process, or behind a socket."""
    settings = ServerSettings(served_model_name=("tiny",))
    if kind == "socket":
        return served.with_client(lambda client: play(create_app(client, settings), client))

    async def beside() -> Any:
        engine = AsyncLLM("smollm2", num_threads=1, max_model_len=128, num_gpu_blocks_override=64)
        try:
            return await play(create_app(engine, settings), engine)
        finally:
            engine.shutdown()

    return asyncio.run(beside())


@pytest.mark.parametrize("kind", ["thread", "socket"])
def test_a_stream_is_forked_and_pruned_while_it_runs(kind: str, served: ThreadEngine, offline: LLM) -> None:
    async def play(app: FastAPI, client: EngineClient) -> None:
        story = await Client(app).begin()

        async def meanwhile(num_pieces: int) -> None:
            if num_pieces == 5:
                assert (await story.ask("/fork", n=3))["forked"] == [0, 1, 2]
            if num_pieces == 12:
                assert [one["branch"] for one in (await story.ask("/prune", branch=1))["branches"]] == [0, 2]
                with_own = await story.ask("/fork", n=2, branch=2)
                assert with_own["forked"] == [2, 3]
                assert "another call continues" in (await story.ask("/extend", 400, text="a"))["error"]["message"]

        before = (await story.read())[0]["token_ids"]
        events = await story.stream(meanwhile, stream_options={"include_usage": True}, **SEEDED)
        assert events[-1] == "[DONE]"
        texts, ids, ends = joined(events)
        assert ends == {0: "length", 1: "abort", 2: "length", 3: "length"}
        assert events[-2]["usage"]["completion_tokens"] == sum(map(len, ids.values()))
        after = await story.read()
        assert {number: one["token_ids"] for number, one in after.items()} == {
            number: before + ids[number] for number in (0, 2, 3)
        }
        assert ids[0] == offline.generate([before], PARAMS.replace(seed=5), use_tqdm=False)[0].outputs[0].token_ids
        for parent, number in ((0, 2), (2, 3)):
            assert texts[number] == (after[number]["text"] or "").removeprefix("Once upon a time there was a king who")
            place = next(i for i in range(21) if ids[parent][: i + 1] != ids[number][: i + 1])
            assert 3 <= place < 20
            prompt, params = before + ids[number][:place], PARAMS.replace(seed=5 + number, max_tokens=20 - place)
            rest = offline.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids
            assert ids[number] == ids[number][:place] + rest
        again = await story.ask("/generate", max_tokens=3)
        assert [choice["index"] for choice in again["choices"]] == [0, 2, 3]
        assert (await client.stats()).num_used_blocks == 0

    play_with(kind, served, play)


@pytest.mark.parametrize("kind", ["thread", "socket"])
def test_a_whole_answer_has_the_copies_too(kind: str, served: ThreadEngine) -> None:
    async def play(app: FastAPI, client: EngineClient) -> None:
        story = await Client(app).begin()
        told = asyncio.create_task(story.ask("/generate", **{**SEEDED, "max_tokens": 80}))
        while (await client.stats()).num_running == 0:
            await asyncio.sleep(0)
        await story.ask("/fork", n=3)
        await story.ask("/prune", branch=1)
        choices = {choice["index"]: choice for choice in (await told)["choices"]}
        assert {index: choice["finish_reason"] for index, choice in choices.items()} == {
            0: "length",
            1: "abort",
            2: "length",
        }
        after = await story.read()
        assert list(after) == [0, 2]
        assert all(after[number]["token_ids"][-80:] == choices[number]["token_ids"] for number in (0, 2))
        assert choices[0]["token_ids"] != choices[2]["token_ids"]
        assert (await client.stats()).num_used_blocks == 0

    play_with(kind, served, play)


def test_who_leaves_a_stream_ends_its_branches_and_they_keep_what_was_sent() -> None:
    async def play() -> None:
        engine = ScriptedEngine(pause=0.01)
        story = await Client(app_of(engine)).begin("Hi")
        await story.ask("/fork", n=2)
        await story.stream(leave_after=3, branches=[1])
        assert engine.live == 0
        kept = await story.read()
        assert kept[0]["text"] == "Hi"
        assert kept[1]["text"].startswith("Hi one two")
        texts, _, ends = joined(await story.stream(max_tokens=2))
        assert (texts, ends) == ({0: " one two", 1: " one two"}, {0: "length", 1: "length"})

    asyncio.run(play())


def test_a_stream_that_fails_or_finds_its_branch_taken_says_so() -> None:
    async def play() -> None:
        engine = ScriptedEngine(pause=0.02)
        story = await Client(app_of(engine)).begin("Hi")
        first = asyncio.create_task(story.stream())
        await asyncio.sleep(0.01)
        refused = await story.ask("/generate", 400, stream=True)
        assert "branch is 0, which another call continues" in refused["error"]["message"]
        assert joined(await first)[2] == {0: "length"}
        engine.fault, engine.fault_at = RuntimeError("broken"), 2
        events = await story.stream()
        assert events[-2]["error"]["code"] == "internal_error"
        assert (await story.read())[0]["text"].endswith(" one two")

    asyncio.run(play())


def test_what_a_running_call_cannot_fork_is_refused(served: ThreadEngine) -> None:
    async def play(app: FastAPI, client: EngineClient) -> None:
        story = await Client(app).begin()
        refused: list[str] = []
        bodies: list[dict[str, int]] = [{"n": 0}, {"n": 2, "branch": 7}, {"n": 2000}, {"n": 2}]

        async def meanwhile(num_pieces: int) -> None:
            if num_pieces == 3:
                for body in bodies:
                    refused.append((await story.ask("/fork", 400, **body))["error"]["message"])

        await story.stream(meanwhile, max_tokens=8, logprobs=1)
        assert "log-probabilities, and their number is bounded when a call begins" in refused[3]
        assert "branch is 7, allowed are [0]" in refused[1]
        refused.clear()
        last = bodies.pop()
        await story.stream(meanwhile, max_tokens=8)
        assert (await story.ask("/fork", **last))["forked"] == [0, 1]
        assert refused[0].startswith("n is 0, allowed is 1 to")
        assert refused[2].startswith("branches holds 2000 branches, allowed are 1 to 1024")
        assert list(await story.read()) == [0, 1]

    play_with("socket", served, play)


def test_copies_count_as_tokens_that_a_call_may_add(served: ThreadEngine) -> None:
    async def play(app: FastAPI, client: EngineClient) -> None:
        story = await Client(
            create_app(client, ServerSettings(served_model_name=("t",), max_session_tokens=100))
        ).begin()

        async def meanwhile(num_pieces: int) -> None:
            if num_pieces == 3:
                full = await story.ask("/fork", 429, n=4)
                assert full["error"]["code"] == "too_many_session_tokens"
                await story.ask("/fork", n=2)

        await story.stream(meanwhile, max_tokens=20, ignore_eos=True)
        assert list(await story.read()) == [0, 4]

    play_with("socket", served, play)
