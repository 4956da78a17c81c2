"""Sessions over HTTP: branches go on as whole prompts would, and every call is bounded."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from octavo import LLM, AsyncLLM, SamplingParams
from octavo.engine.branches import Branches
from octavo.errors import ConfigError, InvalidRequestError
from octavo.observe.events import BlocksGiven
from octavo.server.api_errors import ApiError
from octavo.server.app import create_app
from octavo.server.session_protocol import BODIES, SessionGenerateRequest
from octavo.server.session_store import SessionStore
from octavo.server.settings import ServerSettings
from tests.conftest import TinyFolder
from tests.server.live import API, live
from tests.server.scripted_engine import IDS, LIMITS, Answer, ScriptedEngine, app_of, call, get, post
from tests.server.test_fuzz import VALUES, with_value

GREEDY = {"temperature": 0, "max_tokens": 6, "ignore_eos": True, "return_token_ids": True}
PROMPT = [3 + place * 7 % 150 for place in range(6 * 16 + 5)]
JSON = {"content-type": "application/json"}


class Client:
    """Of one session."""

    def __init__(self, app: FastAPI, prompt: object = "Once", **more: Any) -> None:
        self.app = app
        self.begun = post(app, "/v1/sessions", {"prompt": prompt, **more}).json()
        self.path = f"/v1/sessions/{self.begun['id']}"

    def ask(self, what: str, **body: Any) -> Answer:
        return post(self.app, f"{self.path}/{what}", body)

    def read(self) -> dict[int, dict[str, Any]]:
        return {one["branch"]: one for one in get(self.app, self.path).json()["branches"]}


def error(answer: Answer) -> str:
    return str(answer.error["message"])


def test_a_tree_of_branches() -> None:
    engine = ScriptedEngine()
    story = Client(app_of(engine), "Once upon a time", cache_salt="mine")
    assert story.begun["object"] == "session"
    assert story.begun["branches"] == [{"branch": 0, "num_tokens": 4, "token_ids": None, "text": None}]
    assert story.ask("fork", n=3).json()["forked"] == [0, 1, 2]
    assert story.ask("extend", text=" a king", branch=1).json()["branches"][1]["num_tokens"] == 6
    assert story.ask("extend", token_ids=[5], branch=2).status == 200
    told = story.ask("generate", branches=[2, 1], max_tokens=2, seed=7).json()
    assert told["object"] == "text_completion"
    assert {one["index"]: one["text"] for one in told["choices"]} == {2: " one two", 1: " one two"}
    assert told["usage"]["completion_tokens"] == 4
    assert [request.sampling_params.seed for request in engine.requests] == [9, 8]
    assert engine.salts == ["mine", "mine"]
    read = story.read()
    assert read[1]["text"] == "Once upon a time a king one two"
    assert read[2]["token_ids"] == [*read[0]["token_ids"], 5, *IDS[:2]]
    assert [one["branch"] for one in story.ask("prune", branch=0).json()["branches"]] == [1, 2]
    assert story.ask("fork", n=2, branch=2).json()["forked"] == [2, 3]
    assert get(story.app, story.path).json()["forked"] is None
    gone = asyncio.run(call(story.app, "DELETE", story.path, b"", {}))
    assert gone.json() == {"id": story.begun["id"], "object": "session.deleted", "deleted": True}
    assert get(story.app, story.path).status == 404


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("fork", {"n": 0}, "n is 0, allowed is 1 to 16384"),
    ("fork", {"n": 2, "branch": 3}, "branch is 3, allowed are [0]"),
    ("fork", {}, "n is missing, it is required"),
    ("prune", {"branch": 3}, "branch is 3, allowed are [0]"),
    ("extend", {}, "text and token_ids are both given or both missing"),
    ("extend", {"text": "a", "token_ids": [5]}, "text and token_ids are both given"),
    ("extend", {"text": ""}, "text is empty, allowed is at least one token"),
    ("extend", {"token_ids": []}, "token_ids is empty"),
    ("extend", {"token_ids": [-1]}, "token_ids holds token id -1, allowed are 0 to 49151"),
    ("extend", {"token_ids": [5] * 200}, "branch 0 would have 201 tokens, allowed are 127"),
    ("extend", {"token_ids": [5], "branch": 1}, "branch is 1, allowed are [0]"),
    ("generate", {"branches": [0, 0]}, "branches holds [0, 0], allowed is each number once"),
    ("generate", {"branches": []}, "branches holds 0 branches, allowed are 1 to 1024"),
    ("generate", {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs is 1 and stream is true"),
    ("generate", {"n": 2}, "n is 2, allowed is to leave it out: a branch has one continuation: fork it"),
    ("generate", {"echo": True}, "echo is True"),
    ("generate", {"cache_salt": "a"}, "cache_salt is 'a', allowed is to leave it out: it is the session's own"),
    ("generate", {"truncate_prompt_tokens": 3}, "truncate_prompt_tokens is 3"),
    ("generate", {"max_tokens": 0}, "max_tokens is 0"),
    ("generate", {"max_tokens": 999}, "max_tokens is 999, allowed are up to 128"),
    ("generate", {"model": "other"}, "the model 'other' is not served here"),
    ("generate", {"temprature": 1}, "there is no parameter 'temprature'; did you mean 'temperature'"),
]


@pytest.mark.parametrize(("what", "body", "message"), REFUSED, ids=[message[:30] for _, _, message in REFUSED])
def test_what_cannot_be_meant_is_refused(what: str, body: dict[str, Any], message: str) -> None:
    story = Client(app_of())
    refused = story.ask(what, **body)
    assert refused.status in (400, 404)
    assert error(refused).startswith(message)
    assert story.read()[0]["num_tokens"] == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": [5] * 128}, "prompt has 128 tokens, allowed are 127"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": [[5]]}, "prompt[0] is [5], allowed is int"),
        ({"prompt": [50000]}, "prompt holds token id 50000, allowed are 0 to 49151"),
        ({"prompt": "a", "cache_salt": ""}, "cache_salt is ''"),
        ({"prompt": "a", "model": "other"}, "the model 'other' is not served here"),
    ],
)
def test_a_session_begins_with_a_prompt_that_fits(body: dict[str, Any], message: str) -> None:
    assert error(post(app_of(), "/v1/sessions", body)).startswith(message)


def test_every_field_takes_any_value_or_refuses_it() -> None:
    async def fuzz() -> None:
        engine = ScriptedEngine()
        app = app_of(engine)
        bodies: dict[str, dict[str, Any]] = {
            "": {"prompt": "Hi"},
            "fork": {"n": 2},
            "extend": {"token_ids": [5]},
            "prune": {"branch": 0},
            "generate": {"max_tokens": 2},
        }
        for what, body in bodies.items():
            kind = BODIES[f"/v1/sessions/{{id}}/{what}" if what else "/v1/sessions"][0]
            assert kind is not None
            for field in (*kind.__struct_fields__, "unknown"):
                for value in VALUES if kind is not SessionGenerateRequest else VALUES[::4]:
                    begun = await call(app, "POST", "/v1/sessions", b'{"prompt": [4, 5]}', JSON)
                    path = f"/v1/sessions/{begun.json()['id']}"
                    sent = f"{path}/{what}" if what else "/v1/sessions"
                    answer = await call(app, "POST", sent, with_value(body, (), field, value), JSON)
                    told = f"{what} {field}={value}: {answer.status} {answer.body[:200]!r}"
                    assert answer.status in (200, 400, 404), told
                    assert answer.status == 200 or len(answer.error["message"]) > 10, told
                    assert (await call(app, "DELETE", path, b"", {})).status == 200
                    if what == "" and answer.status == 200:
                        await call(app, "DELETE", f"/v1/sessions/{answer.json()['id']}", b"", {})
        assert engine.live == 0

    asyncio.run(fuzz())


def test_sessions_and_their_tokens_are_bounded() -> None:
    app = app_of(max_sessions=2, max_session_tokens=100)
    story, other = Client(app, [5] * 20), Client(app, [5] * 10)
    full = post(app, "/v1/sessions", {"prompt": "Hi"})
    assert (full.status, full.error["code"], full.error["type"]) == (429, "too_many_sessions", "rate_limit_error")
    assert error(full).startswith("2 sessions are open, allowed are 2: prune branches, delete sessions, wait until")
    assert story.ask("fork", n=4).status == 200  # 90 tokens
    for what, body in (
        ("fork", {"n": 2}),
        ("extend", {"token_ids": [5] * 3}),
        ("generate", {"max_tokens": 3}),
    ):
        full = story.ask(what, **body)
        assert (full.status, full.error["code"]) == (429, "too_many_session_tokens"), what
        assert "tokens (with those that running calls may add), allowed are 100: prune" in error(full)
    assert story.ask("generate", max_tokens=2).status == 200  # eight more
    assert len(story.read()[0]["token_ids"]) == 22
    asyncio.run(call(app, "DELETE", other.path, b"", {}))
    assert Client(app, [5] * 10).ask("extend", token_ids=[5] * 3).status == 429
    assert story.ask("prune", branch=3).status == 200
    assert story.ask("fork", n=2).status == 200


def test_an_idle_session_expires_and_a_running_call_keeps_its_own() -> None:
    now = [0.0]
    store = SessionStore(ServerSettings(session_timeout=10), lambda: now[0])
    idle, used, running = (store.add([5], LIMITS, "tiny", None) for _ in range(3))
    with store.generating(running, 4):
        for now[0] in (9.0, 18.0):
            assert store.get(used.id) is used
        assert idle.branches.is_closed
        with pytest.raises(ApiError, match=r"there is no session .*: it was deleted, the server was restarted, or"):
            store.get(idle.id)
        assert store.get(running.id) is running
    now[0] = 40.0
    with pytest.raises(ApiError, match="no call for 10 s; begin another"):
        store.get(running.id)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"session_timeout is .*, allowed is a number"):
            ServerSettings(session_timeout=wrong)
    with pytest.raises(ConfigError, match="max_sessions is 0, allowed is 1 or more"):
        ServerSettings(max_sessions=0)


def test_a_session_needs_one_front_end_and_a_prefix_cache() -> None:
    engine = ScriptedEngine()
    engine.num_front_ends = 2
    for answer in (post(app_of(engine), "/v1/sessions", {"prompt": "Hi"}), get(app_of(engine), "/v1/sessions/a")):
        assert (answer.status, answer.error["code"]) == (400, "sessions_need_one_front_end")
        assert "this server has 2 front ends" in error(answer)
    with pytest.raises(InvalidRequestError, match="enable_prefix_caching is False"):
        Branches([5], replace(LIMITS, enable_prefix_caching=False))


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("num_front_ends", [1, 2])
def test_a_server_of_processes_keeps_them_in_its_only_front_end(tmp_path: Path, num_front_ends: int) -> None:
    with live(tmp_path, API, api_server_count=num_front_ends) as server:
        status, body = server.get("/v1/sessions/unknown")
        codes = {1: "session_not_found", 2: "sessions_need_one_front_end"}
        assert json.loads(body)["error"]["code"] == codes[num_front_ends], status


@pytest.mark.parametrize(("method", "what"), [("POST", ""), ("GET", "/a"), ("DELETE", "/a"), ("POST", "/a/generate")])
def test_every_route_wants_a_key(method: str, what: str) -> None:
    answer = asyncio.run(call(app_of(api_key=("first",)), method, f"/v1/sessions{what}", b"{}", JSON))
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


def test_a_branch_in_use_is_refused_others_are_not_and_leaving_changes_nothing() -> None:
    async def play() -> None:
        engine = ScriptedEngine(pause=0.05)
        app = app_of(engine)

        async def ask(what: str, leave_after: int | None = None, **body: Any) -> Answer:
            return await call(app, "POST", path + what, json.dumps(body).encode(), JSON, leave_after)

        begun = await call(app, "POST", "/v1/sessions", b'{"prompt": "Hi"}', JSON)
        path = f"/v1/sessions/{begun.json()['id']}"
        await ask("/fork", n=2)
        first = asyncio.create_task(ask("/generate", branches=[1], max_tokens=3))
        await asyncio.sleep(0.02)
        for what, body in (("/generate", {"stream": True}), ("/generate", {}), ("/extend", {"text": "a"})):
            refused = await ask(what, **body)
            assert refused.status == 400
            assert error(refused) == "branch is 1, which another call continues: wait until it has ended"
        assert (await ask("/generate", branches=[0], max_tokens=1)).status == 200
        assert (await first).json()["choices"][0]["text"] == " one two three"
        await ask("/generate", leave_after=0, branches=[0], max_tokens=3)
        assert engine.live == 0
        read = (await call(app, "GET", path, b"", {})).json()["branches"]
        assert [one["text"] for one in read] == ["Hi one", "Hi one two three"]
        last = asyncio.create_task(ask("/generate", branches=[0], max_tokens=2))
        await asyncio.sleep(0.02)
        assert (await call(app, "DELETE", path, b"", {})).status == 200
        assert (await last).status == 200

    asyncio.run(play())


def test_a_failed_call_leaves_the_branch_as_it_was() -> None:
    engine = ScriptedEngine(fault=RuntimeError("broken"), fault_at=1)
    story = Client(app_of(engine))
    assert story.ask("generate").status == 500
    assert story.read()[0]["num_tokens"] == 1
    engine.fault = None
    assert story.ask("generate").status == 200


def test_logprobs_and_ids_are_those_of_completions() -> None:
    story = Client(app_of(), "Hi")
    asked = {"max_tokens": 2, "logprobs": 1, "return_token_ids": True}
    (told,) = story.ask("generate", **asked).json()["choices"]
    (alone,) = post(app_of(), "/v1/completions", {"prompt": "Hi", **asked}).json()["choices"]
    assert told == alone


def test_a_real_engine_shares_the_blocks_and_leaves_none(tiny_folder: TinyFolder) -> None:
    options = {"skip_tokenizer_init": True, "num_threads": 1, "max_model_len": 256, "num_gpu_blocks_override": 100}

    async def play() -> dict[int, list[int]]:
        engine = AsyncLLM(tiny_folder("llama"), check_invariants=True, **options)
        app = create_app(engine, ServerSettings(served_model_name=("tiny",)))

        async def ask(path: str, body: object) -> Any:
            answer = await call(app, "POST", path, json.dumps(body).encode(), JSON)
            assert answer.status == 200, answer.body
            return answer.json()

        path = "/v1/sessions/" + (await ask("/v1/sessions", {"prompt": PROMPT}))["id"]
        await ask(f"{path}/fork", {"n": 4})
        for number in range(4):
            await ask(f"{path}/extend", {"token_ids": [100 + number], "branch": number})
        told = await ask(f"{path}/generate", GREEDY)
        given = sum(len(event.block_ids) for event in engine._engine.events if isinstance(event, BlocksGiven))
        assert given == 6 + 4  # the prompt's full blocks once, and one tail for each branch
        again = await ask(f"{path}/generate", GREEDY)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 4 * 6 * 16
        assert (await call(app, "DELETE", path, b"", {})).status == 200
        assert (await engine.stats()).num_used_blocks == 0
        engine.shutdown()
        made: dict[int, list[int]] = {}
        for choice in told["choices"] + again["choices"]:
            made.setdefault(choice["index"], []).extend(choice["token_ids"])
        return made

    made = asyncio.run(play())
    with LLM(tiny_folder("llama"), **options) as llm:
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        alone = llm.generate([[*PROMPT, 100 + number] for number in range(4)], params, use_tqdm=False)
    assert made == {number: output.outputs[0].token_ids for number, output in enumerate(alone)}
