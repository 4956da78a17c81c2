"""Batches through the routes: the answers of HTTP, exactly once, however an earlier run ended."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import EngineBusyError, EngineDeadError, InvalidRequestError
from octavo.outputs import RequestOutput
from octavo.request import Request
from octavo.server.batch import run_batch
from octavo.server.batch_files import BatchInput, BatchOutput
from tests.server.scripted_embedder import ScriptedEmbedder
from tests.server.scripted_engine import ScriptedEngine, app_of, post

COMPLETION = {"prompt": "One,", "max_tokens": 3}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "logprobs": True, "top_logprobs": 1}


def line(custom_id: object, body: object = COMPLETION, url: str = "/v1/completions", **changes: object) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body, **changes})


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def run(files: tuple[Path, Path], engine: ScriptedEngine | None = None, max_inflight: int = 4) -> list[dict[str, Any]]:
    """The whole output afterwards."""
    with BatchInput(str(files[0])) as asked, BatchOutput(str(files[1]), asked) as results:
        app = app_of(engine, enable_request_id_headers=True)
        asyncio.run(run_batch(app, asked, results, max_inflight, lambda num_tokens: None))
    return read(files[1])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in path.read_text(encoding="utf-8").splitlines()]


def test_a_call_gets_what_http_would_have_answered(files: tuple[Path, Path]) -> None:
    refused = {"prompt": "One,", "top_p": 7}
    calls = {
        "a": ("/v1/completions", COMPLETION),
        "b": ("/v1/chat/completions", CHAT),
        "c": ("/v1/completions", refused),
        "d": ("/v1/completions", {**COMPLETION, "model": "other"}),
        "\u00e4 \u2028": ("/v1/chat/completions", {**CHAT, "request_id": "mine"}),
    }
    files[0].write_text("\n".join(line(key, body, url) for key, (url, body) in calls.items()), encoding="utf-8")
    results = {one["custom_id"]: one for one in map(json.loads, _lines_of(run_bytes(files)))}
    assert results.keys() == calls.keys()
    app = app_of()
    for key, (url, body) in calls.items():
        expected, response = post(app, url, body), results[key]["response"]
        assert results[key]["error"] is None
        assert response["status_code"] == expected.status
        assert without_id(response["body"]) == without_id(expected.json())
    assert [results[key]["response"]["status_code"] for key in "abcd"] == [200, 200, 400, 404]
    assert results["a"]["response"]["body"]["id"] == f"cmpl-{results['a']['response']['request_id']}"
    assert results["\u00e4 \u2028"]["response"]["request_id"] == "mine"
    assert len({one["id"] for one in results.values()}) == len(calls)


def run_bytes(files: tuple[Path, Path]) -> bytes:
    with BatchInput(str(files[0])) as asked, BatchOutput(str(files[1]), asked) as results:
        asyncio.run(run_batch(app_of(enable_request_id_headers=True), asked, results, 4, lambda num_tokens: None))
    return files[1].read_bytes()


def _lines_of(content: bytes) -> list[bytes]:
    """Lines end only with a line feed, not with Unicode's other line ends."""
    assert content.endswith(b"\n")
    return content[:-1].split(b"\n")


def without_id(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key not in ("id", "created")}


def test_a_model_that_embeds_answers_batches_too(files: tuple[Path, Path]) -> None:
    calls = [
        ("/v1/embeddings", {"input": ["one", "two"]}),
        ("/v1/rerank", {"query": "one", "documents": ["two", "one"]}),
        ("/v1/score", {"text_1": "one", "text_2": "two"}),
        ("/pooling", {"input": "one"}),
    ]
    files[0].write_text("\n".join(line(str(place), body, url) for place, (url, body) in enumerate(calls)))
    found: list[int] = []
    with BatchInput(str(files[0])) as asked, BatchOutput(str(files[1]), asked) as results:
        asyncio.run(run_batch(app_of(ScriptedEmbedder()), asked, results, 1, found.append))
    answers = [one["response"]["body"] for one in read(files[1])]
    for (url, body), answer in zip(calls, answers, strict=True):
        assert without_id(answer) == without_id(post(app_of(ScriptedEmbedder()), url, body).json())
    assert found == [answer["usage"]["total_tokens"] for answer in answers]


def test_responses_are_answered_and_not_kept(files: tuple[Path, Path]) -> None:
    asked = {"input": "Hi", "instructions": "Be brief.", "max_output_tokens": 3}
    bodies = [asked, {**asked, "store": True}, {**asked, "previous_response_id": "resp_1"}]
    files[0].write_text("\n".join(line(str(place), body, "/v1/responses") for place, body in enumerate(bodies)))
    found: list[int] = []
    app = app_of(max_stored_responses=0)
    with BatchInput(str(files[0])) as calls, BatchOutput(str(files[1]), calls) as results:
        asyncio.run(run_batch(app, calls, results, 1, found.append))
    made, *refused = [one["response"] for one in read(files[1])]
    assert made["status_code"] == 200
    assert made["body"]["output"][0]["content"][0]["text"]
    assert not made["body"]["store"]
    assert found == [made["body"]["usage"]["output_tokens"], 0, 0] == [3, 0, 0]
    assert [(one["status_code"], one["body"]["error"]["param"]) for one in refused] == [
        (400, "store"), (400, "previous_response_id"),
    ]  # fmt: skip


BAD_LINES = {
    "not json": "not valid JSON",
    '"text"': "Expected `object`",
    '{"custom_id": "x1", "method": "POST", "url": "/v1/completions"}': "missing required field `body`",
    line(
        "x2", url="/v1/messages"
    ): "url is '/v1/messages', allowed are /v1/chat/completions, /v1/completions, /v1/resp",
    line("x3", method="GET"): "method is 'GET', allowed is 'POST'",
    line("x4", {**COMPLETION, "stream": True}): "stream is True, allowed in a batch is false",
    line("x5", 5): "Expected `object`, got `int`",
    line("x6", extra=1): "unknown field `extra`",
    line(7): "Expected `str`, got `int`",
    line(""): "custom_id is ''",
    '{"body": ' + "[" * 100_000: "not valid JSON",
}


def test_a_bad_line_gets_an_error_and_ends_nothing(files: tuple[Path, Path]) -> None:
    files[0].write_text("\ufeff" + "\n\n".join([line("first"), *BAD_LINES, line("last")]) + "\n", encoding="utf-8")
    results = run(files)
    assert len(results) == len(BAD_LINES) + 2
    told = {one["error"]["line"]: one for one in results if one["error"]}
    for place, (bad, message) in enumerate(BAD_LINES.items(), 1):
        one = told[1 + 2 * place]
        assert f"line {1 + 2 * place}: " in one["error"]["message"]
        assert message in one["error"]["message"]
        assert one["response"] is None
        assert one["custom_id"] == (f"x{bad.split('x')[1][0]}" if '"x' in bad else None)
    assert {one["custom_id"] for one in results if one["response"]} == {"first", "last"}
    assert run(files) == results, "lines without an id are done, too"


def test_what_is_done_is_not_done_again_and_a_torn_line_is(files: tuple[Path, Path]) -> None:
    names = [f"n{i}" for i in range(6)]
    files[0].write_text("\n".join(map(line, names)))
    run(files, max_inflight=1)
    whole = files[1].read_bytes().splitlines(keepends=True)
    for torn in (1, 5, 40, len(whole[3]) - 1):
        files[1].write_bytes(b"".join(whole[:3]) + whole[3][:torn])
        engine = ScriptedEngine()
        results = run(files, engine)
        assert len(engine.requests) == 3
        assert files[1].read_bytes().startswith(b"".join(whole[:3]))
        assert sorted(one["custom_id"] for one in results) == names


def test_the_engines_end_ends_the_batch_and_is_no_result(files: tuple[Path, Path]) -> None:
    files[0].write_text("\n".join(line(f"n{i}") for i in range(8)))
    dying = ScriptedEngine()

    async def say(request: Request) -> AsyncIterator[RequestOutput]:
        if len(dying.requests) > 3:
            raise EngineDeadError("it fell over")
        async for output in ScriptedEngine._say(dying, request):
            yield output

    dying._say = say  # type: ignore[method-assign]
    with pytest.raises(EngineDeadError, match=r"^it fell over$"):
        run(files, dying, max_inflight=2)
    kept = [one["custom_id"] for one in read(files[1])]
    assert 1 <= len(kept) <= 3
    assert dying.live == 0
    results = run(files)
    assert sorted(one["custom_id"] for one in results) == [f"n{i}" for i in range(8)]
    assert all(one["response"]["status_code"] == 200 for one in results)


def test_stopping_ends_what_is_in_flight_and_keeps_what_is_done(files: tuple[Path, Path]) -> None:
    files[0].write_text("\n".join(line(f"n{i}") for i in range(8)))
    engine = ScriptedEngine(first_pause=0.05)

    async def stop_in_the_middle() -> None:
        with BatchInput(str(files[0])) as asked, BatchOutput(str(files[1]), asked) as results:
            batch = asyncio.create_task(run_batch(app_of(engine), asked, results, 2, lambda num_tokens: None))
            while not results.done:
                await asyncio.sleep(0.01)
            batch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await batch

    asyncio.run(stop_in_the_middle())
    assert engine.live == 0
    assert 1 <= len(read(files[1])) < 8
    assert sorted(one["custom_id"] for one in run(files)) == [f"n{i}" for i in range(8)]


def test_a_busy_engine_is_asked_again(files: tuple[Path, Path]) -> None:
    files[0].write_text(line("a"))
    engine = ScriptedEngine(fault=EngineBusyError("too many wait", 0.1))

    async def run_meanwhile() -> None:
        with BatchInput(str(files[0])) as asked, BatchOutput(str(files[1]), asked) as results:
            batch = asyncio.create_task(run_batch(app_of(engine), asked, results, 1, lambda num_tokens: None))
            while not engine.requests:
                await asyncio.sleep(0.01)
            engine.fault = None
            await batch

    asyncio.run(run_meanwhile())
    assert [one["response"]["status_code"] for one in read(files[1])] == [200]
    assert len(engine.requests) == 2


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_calls_are_in_flight_than_allowed(files: tuple[Path, Path], most: int) -> None:
    files[0].write_text("\n".join(line(f"n{i}") for i in range(9)))
    engine, seen = ScriptedEngine(first_pause=0.02), []

    async def say(request: Request) -> AsyncIterator[RequestOutput]:
        async for output in ScriptedEngine._say(engine, request):
            seen.append(engine.live)
            yield output

    engine._say = say  # type: ignore[method-assign]
    run(files, engine, max_inflight=most)
    assert max(seen) == most


def test_an_id_on_two_lines_is_refused_with_both(files: tuple[Path, Path]) -> None:
    files[0].write_text("\n".join([line("a"), line("b"), "", line("a")]))
    with pytest.raises(InvalidRequestError, match="custom_id 'a' is on line 1 and on line 4, allowed is one line"):
        BatchInput(str(files[0]))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("my thesis", "line 1 is not the result of a batch"),
        ("my thesis\n", "line 1 is not the result of a batch"),
        ('{"id":"x","custom_id":"z","response":null,"error":null}\n', "custom_id 'z', which .* does not hold"),
    ],
)
def test_a_file_that_is_no_output_of_this_batch_is_left_alone(
    files: tuple[Path, Path], content: str, told: str
) -> None:
    files[0].write_text(line("a"))
    files[1].write_text(content)
    with pytest.raises(InvalidRequestError, match=told):
        run(files)
    assert files[1].read_text() == content


def test_files_that_cannot_be_used_are_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"--input-file .*in\.jsonl cannot be read"):
        BatchInput(str(files[0]))
    files[0].write_text(line("a"))
    with BatchInput(str(files[0])) as asked:
        with pytest.raises(InvalidRequestError, match="are both"):
            BatchOutput(str(files[0]), asked)
        with pytest.raises(InvalidRequestError, match="cannot be written"):
            BatchOutput(str(tmp_path), asked)
        with BatchOutput(str(files[1]), asked), pytest.raises(InvalidRequestError, match="by another run"):
            BatchOutput(str(files[1]), asked)


def test_a_full_disk_ends_the_batch_with_whole_results(files: tuple[Path, Path]) -> None:
    """A limit on file sizes replaces a full disk: like one, it lets the beginning of a line through."""
    files[0].write_text("\n".join(line(f"n{i}") for i in range(6)))
    run(files, max_inflight=1)
    whole = files[1].read_bytes().splitlines(keepends=True)
    files[1].write_bytes(b"".join(whole[:2]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(b"".join(whole[:3])) + 40, hard))
    try:
        with pytest.raises(InvalidRequestError, match=r"--output-file .* cannot be written: .*File too large"):
            run(files, max_inflight=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(read(files[1])) == 3
    assert files[1].read_bytes().endswith(b"\n")
    assert sorted(one["custom_id"] for one in run(files)) == [f"n{i}" for i in range(6)]
