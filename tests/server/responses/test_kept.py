"""Kept responses: continued, read, listed, cancelled and deleted, by their own client only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from octavo.errors import ConfigError
from tests.server.responses.test_create import CLOCK, LOGPROBS
from tests.server.scripted_engine import Answer, ScriptedEngine, app_of, call, get, post
from tests.server.speaking_engine import SpeakingEngine
from tests.server.test_tools import HERMES

CLOCK_CALL = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
JSON = {"content-type": "application/json"}


def ask(app: FastAPI, key: str = "", **fields: Any) -> dict[str, Any]:
    answer = post(app, "/v1/responses", {"input": "Hi", **fields}, **({"x-api-key": key} if key else {}))
    assert answer.status == 200, answer.body
    response: dict[str, Any] = answer.json()
    return response


def send(app: FastAPI, method: str, path: str, **headers: str) -> Answer:
    return asyncio.run(call(app, method, f"/v1/responses/{path}", b"", headers))


def test_a_conversation_goes_on() -> None:
    engine = SpeakingEngine(f"<think>Hm.</think>Wait. {CLOCK_CALL}", HERMES)
    app = app_of(engine)
    first = ask(app, tools=[CLOCK], instructions="Be brief.")
    engine.says = "Noon."
    result = {"type": "function_call_output", "call_id": first["output"][2]["call_id"], "output": "12:00"}
    second = ask(app, input=[result], previous_response_id=first["id"], tools=[CLOCK])
    assert second["previous_response_id"] == first["id"]
    assert engine.prompt == "clock;user:  Hiassistant: Hm. Wait.tool:  12:00assistant:", "instructions are not repeated"
    third = ask(app, input="And now?", previous_response_id=second["id"], store=False)
    assert engine.prompt.endswith("tool:  12:00assistant:  Noon.user:  And now?assistant:")
    assert get(app, f"/v1/responses/{third['id']}").status == 404
    ask(app, previous_response_id=first["id"])  # a line may have branches


def test_what_was_streamed_is_kept_when_its_end_is_told() -> None:
    app = app_of(SpeakingEngine("Yes.", HERMES))
    events = post(app, "/v1/responses", {"input": "Hi", "stream": True}).events()
    assert get(app, f"/v1/responses/{events[-1]['response']['id']}").json() == events[-1]["response"]


def test_kept_responses_are_read_and_deleted() -> None:
    app = app_of(SpeakingEngine("Yes.", HERMES))
    response = ask(app)
    path = f"/v1/responses/{response['id']}"
    assert get(app, path).json() == response
    assert get(app, f"{path}?include={LOGPROBS}&include_obfuscation=false").json() == response
    refused = send(app, "POST", f"{response['id']}/cancel")
    assert (refused.status, refused.error["code"]) == (400, "response_not_in_background")
    for query, words in (
        ("stream=true", "only a response that was made with background and stream"),
        ("stream=1", "stream is '1'"),
        ("starting_after=1", "starting_after is set and stream is not"),
        ("stream=true&starting_after=-1", "starting_after is '-1'"),
        ("include[]=x", "include holds 'x'"),
        ("include_obfuscation=true", "include_obfuscation is not supported"),
    ):
        answer = get(app, f"{path}?{query}")
        assert (answer.status, words in answer.error["message"]) == (400, True)
    told = send(app, "DELETE", response["id"])
    assert told.json() == {"id": response["id"], "object": "response", "deleted": True}
    for method, more in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        gone = send(app, method, response["id"] + more)
        assert (gone.status, gone.error["code"]) == (404, "response_not_found")
    lost = post(app, "/v1/responses", {"input": "Hi", "previous_response_id": response["id"]})
    assert (lost.status, lost.error["code"]) == (400, "previous_response_not_found")


def test_items_are_listed_page_by_page() -> None:
    app = app_of(SpeakingEngine("Yes.", HERMES))
    first = ask(app, input=[{"role": "user", "content": "A"}, {"role": "user", "content": "B", "id": "mine"}])
    second = ask(app, input="C", previous_response_id=first["id"])
    path = f"/v1/responses/{second['id']}/input_items"
    told = get(app, f"{path}?order=asc").json()
    texts = [item["content"][0]["text"] for item in told["data"]]
    assert texts == ["A", "B", "Yes.", "C"]
    assert [item["content"][0]["type"] for item in told["data"]] == ["input_text"] * 2 + ["output_text", "input_text"]
    ids = [item["id"] for item in told["data"]]
    assert len(set(ids)) == 4
    assert (told["first_id"], told["last_id"], told["has_more"], ids[1]) == (ids[0], ids[3], False, "mine")
    page = get(app, f"{path}?limit=2").json()
    assert ([item["id"] for item in page["data"]], page["has_more"]) == (ids[:1:-1], True)
    page = get(app, f"{path}?limit=2&after={page['last_id']}").json()
    assert ([item["id"] for item in page["data"]], page["has_more"]) == (ids[1::-1], False)
    for query in ("limit=0", "limit=101", "order=up", "after=x"):
        assert get(app, f"{path}?{query}").error["param"] == query.partition("=")[0]


def test_no_client_finds_what_another_key_made() -> None:
    app = app_of(SpeakingEngine("Yes.", HERMES), api_key=("mine", "yours"))
    response = ask(app, "mine")
    for method, more in (("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")):
        for headers in ({"x-api-key": "yours"}, {"authorization": "Bearer yours", "x-api-key": "neither"}):
            assert send(app, method, response["id"] + more, **headers).status == 404
        assert send(app, method, response["id"] + more).status == 401
    body = {"input": "Hi", "previous_response_id": response["id"]}
    assert post(app, "/v1/responses", body, **{"x-api-key": "yours"}).error["code"] == "previous_response_not_found"
    assert ask(app, "mine", previous_response_id=response["id"])["status"] == "completed"


Send = Callable[..., Awaitable[Answer]]


def in_background(engine: ScriptedEngine, story: Callable[[Send], Awaitable[None]], **server: Any) -> None:
    """Calls of one event loop, while responses are made."""
    app = app_of(engine, **server)

    async def send(method: str, path: str, leave_after: int | None = None, **body: Any) -> Answer:
        data = json.dumps(body).encode()
        return await call(app, method, f"/v1/responses{path}", data, JSON, leave_after=leave_after)

    async def run() -> None:
        async with asyncio.timeout(30):
            await story(send)

    asyncio.run(run())
    assert engine.live == 0


async def until_ended(send: Send, response_id: str) -> dict[str, Any]:
    while (response := (await send("GET", f"/{response_id}")).json())["status"] in ("queued", "in_progress"):
        await asyncio.sleep(0.001)
    told: dict[str, Any] = response
    return told


def test_a_response_is_made_while_nobody_waits() -> None:
    async def story(send: Send) -> None:
        begun = (await send("POST", "", input="Hi", background=True)).json()
        assert (begun["status"], begun["background"], begun["output"]) == ("queued", True, [])
        early = await send("POST", "", input="Hi", previous_response_id=begun["id"])
        assert early.error["code"] == "response_in_progress"
        assert (await send("GET", f"/{begun['id']}/input_items")).json()["data"][0]["content"][0]["text"] == "Hi"
        ended = await until_ended(send, begun["id"])
        assert ended["output"][0]["content"][0]["text"] == " one two three caf\u00e9"
        assert (await send("POST", f"/{begun['id']}/cancel")).json() == ended
        assert (await send("GET", f"/{begun['id']}?stream=true")).error["param"] == "stream"

    in_background(ScriptedEngine(pause=0.002), story)


def test_a_response_in_the_background_is_cancelled() -> None:
    async def story(send: Send) -> None:
        begun = (await send("POST", "", input="Hi", background=True)).json()
        while not (seen := (await send("GET", f"/{begun['id']}")).json())["output"]:
            await asyncio.sleep(0.001)
        assert (seen["status"], seen["output"][0]["content"][0]["text"]) == ("in_progress", " one")
        cancelled = (await send("POST", f"/{begun['id']}/cancel")).json()
        assert (cancelled["status"], cancelled["output"][0]["status"]) == ("cancelled", "incomplete")
        assert cancelled["usage"]["output_tokens"] == 1
        assert (await send("GET", f"/{begun['id']}")).json() == cancelled
        at_once = (await send("POST", "", input="Hi", background=True, stream=False)).json()
        assert (await send("DELETE", f"/{at_once['id']}")).json()["deleted"]
        assert (await send("GET", f"/{at_once['id']}")).status == 404

    in_background(ScriptedEngine(pause=5.0), story)


def test_a_stream_in_the_background_is_followed_from_any_event() -> None:
    """Its first client has left after the first event, and the response goes on."""

    async def story(send: Send) -> None:
        first = (await send("POST", "", leave_after=1, input="Hi", background=True, stream=True)).events()
        assert first[0]["type"] == "response.created"
        path = f"/{first[0]['response']['id']}?stream=true"
        assert (await send("GET", path.partition("?")[0])).json()["status"] in ("queued", "in_progress")
        whole = (await send("GET", path)).events()
        kinds = [event["type"] for event in whole]
        assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
        assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
        assert kinds[-1] == "response.incomplete", "the scripted engine's answers are cut"
        for after in (0, 4, len(whole) - 1):
            assert (await send("GET", f"{path}&starting_after={after}")).events() == whole[after + 1 :]

    in_background(ScriptedEngine(pause=0.01), story)


def test_a_response_in_the_background_that_fails_says_so() -> None:
    async def story(send: Send) -> None:
        begun = (await send("POST", "", input="Hi", background=True)).json()
        ended = await until_ended(send, begun["id"])
        assert (ended["status"], ended["error"]["code"]) == ("failed", "server_error")
        assert ended["output"][0]["content"][0]["text"] == " one two"

    in_background(ScriptedEngine(fault=RuntimeError("x"), fault_at=2), story)


def test_there_is_a_most_of_responses_in_the_background() -> None:
    async def story(send: Send) -> None:
        begun = [await send("POST", "", input="Hi", background=True) for _ in range(3)]
        assert [one.status for one in begun] == [200, 200, 429]
        assert begun[2].error["code"] == "too_many_background_responses"
        for one in begun[:2]:
            await send("POST", f"/{one.json()['id']}/cancel")

    in_background(ScriptedEngine(pause=5.0), story, max_background_responses=2)


def test_several_front_ends_keep_nothing_in_memory(tmp_path: Path) -> None:
    engine = SpeakingEngine("Yes.", HERMES)
    engine.num_front_ends = 2
    app = app_of(engine)
    assert not ask(app)["store"]
    for fields in ({"store": True}, {"background": True}, {"previous_response_id": "resp_x"}):
        answer = post(app, "/v1/responses", {"input": "Hi", **fields})
        assert (answer.status, answer.error["param"]) == (400, next(iter(fields)))
        assert "several front ends" in answer.error["message"]
    apps = [app_of(engine, responses_store=str(tmp_path / "kept")) for _ in range(2)]
    response = ask(apps[0])
    assert get(apps[1], f"/v1/responses/{response['id']}").json() == response
    assert ask(apps[1], previous_response_id=response["id"])["store"]
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o600


def test_the_oldest_make_room_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    app = app_of(SpeakingEngine("Yes.", HERMES), max_stored_responses=2)
    ids = [ask(app)["id"] for _ in range(3)]
    assert [get(app, f"/v1/responses/{one}").status for one in ids] == [404, 200, 200]
    assert "the store of responses is full: dropped 1" in caplog.text
    metrics = get(app, "/metrics").body.decode()
    assert 'octavo:stored_responses{model_name="tiny"} 2\n' in metrics
    assert 'octavo:responses_dropped_total{model_name="tiny",reason="room"} 1\n' in metrics
    tiny = app_of(SpeakingEngine("Yes.", HERMES), max_stored_response_bytes=100)
    assert not ask(tiny)["store"], "its client learns that it is not kept"
    small = app_of(SpeakingEngine("Yes.", HERMES), max_body_bytes=2000)
    long = ask(small, input="x" * 1500)
    answer = post(small, "/v1/responses", {"input": "Hi", "previous_response_id": long["id"]})
    assert "--max-body-bytes" in answer.error["message"]


def test_options_are_checked(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a database" * 100)
    with pytest.raises(ConfigError, match=r"responses_store is .*notes.*, which cannot be used"):
        app_of(ScriptedEngine(), responses_store=str(tmp_path / "notes"))
    with pytest.raises(ConfigError, match="stored_response_timeout is 0"):
        app_of(ScriptedEngine(), stored_response_timeout=0.0)
    with pytest.raises(ConfigError, match="max_stored_responses is -1, allowed is 0 or more"):
        app_of(ScriptedEngine(), max_stored_responses=-1)
    with pytest.raises(ConfigError, match="responses_store is 'kept' and max_stored_responses is 0"):
        app_of(ScriptedEngine(), max_stored_responses=0, responses_store="kept")


def test_a_server_may_keep_none() -> None:
    app = app_of(SpeakingEngine("Yes.", HERMES), max_stored_responses=0)
    answer = ask(app)
    assert answer["store"] is False
    assert get(app, f"/v1/responses/{answer['id']}").status == 404
    for name, value in {"store": True, "background": True, "previous_response_id": answer["id"]}.items():
        refused = post(app, "/v1/responses", {"input": "Hi", name: value})
        assert refused.status == 400
        assert refused.error["param"] == name
        assert "no response is kept here, as max_stored_responses is 0" in refused.error["message"]
