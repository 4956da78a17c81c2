"""A storm of requests: streams that are read, abandoned and refused at once, and an engine killed in the middle.

    python -m tests.server.chaos --streams 500

Readers retry as a careful client would, after a 503 or an error inside a stream, and in the end get the text that the
model generates offline for their seed. Afterwards every block is free, only the started processes run, none has more
open files than before, and after SIGTERM no process or file is left.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from octavo import LLM, SamplingParams
from tests.server.live import API, LiveServer, live, until

PROMPTS = ("The sea is", "A small book about", "Once upon a time", "Ink and paper", "Three colours:", "In winter")
MAX_TOKENS = 16
PATIENCE_S = 300.0
#: a stream's behaviour -> its weight
KINDS = {"read": 10, "leave": 4, "garble": 2, "oversize": 1, "misname": 1}


def storm(directory: Path, num_streams: int, seed: int = 0) -> Counter[str]:
    """The number of streams by how they ended. Raises AssertionError if anything was lost, wrong or left behind."""
    rng = random.Random(seed)
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=num_streams)
    asks = [{"prompt": rng.choice(PROMPTS), "seed": rng.randrange(20)} for _ in kinds]
    expected = _offline(asks)
    with live(directory, API, api_server_count=2) as server:
        asyncio.run(
            _all(server, [("read", ask) for ask in asks[:4]], expected, None)
        )  # now every process has opened its files
        before = _open_files(server)
        ends = asyncio.run(_all(server, list(zip(kinds, asks, strict=True)), expected, server.children()["engine"]))
        until(lambda: _metric(server, "octavo:kv_cache_usage_perc") == 0, "blocks are still in use")
        assert _metric(server, "octavo:num_requests_running") == _metric(server, "octavo:num_requests_waiting") == 0
        children = server.children()
        assert sorted(children) == ["engine", "front end 0", "front end 1"]
        until(lambda: all(now <= then + 2 for now, then in zip(_open_files(server), before, strict=True)), before)
        assert server.stop() == 0
        assert server.leftovers(children) == []
    return ends


def _offline(asks: Sequence[dict[str, Any]]) -> dict[tuple[str, int], str]:
    """(prompt, seed) -> the text."""
    keys = sorted({(ask["prompt"], ask["seed"]) for ask in asks})
    with LLM("smollm2", num_threads=1, max_model_len=2048) as llm:
        params = [SamplingParams(seed=seed, max_tokens=MAX_TOKENS) for _, seed in keys]
        outputs = llm.generate([prompt for prompt, _ in keys], params, use_tqdm=False)
    return {key: output.outputs[0].text for key, output in zip(keys, outputs, strict=True)}


async def _all(
    server: LiveServer,
    streams: list[tuple[str, dict[str, Any]]],
    expected: dict[tuple[str, int], str],
    engine: int | None,
) -> Counter[str]:
    ends: Counter[str] = Counter()
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    base = f"http://127.0.0.1:{server.port}"
    async with aiohttp.ClientSession(base, connector=connector, timeout=timeout) as session:
        tasks = [asyncio.create_task(_stream(session, kind, ask, expected, ends)) for kind, ask in streams]
        if engine is not None:
            while ends["begun"] < len(streams) // 8:
                await asyncio.sleep(0.001)
            os.kill(engine, signal.SIGKILL)
            ends["engine killed"] += 1
        await asyncio.gather(*tasks)
    return ends


async def _stream(
    session: aiohttp.ClientSession,
    kind: str,
    ask: dict[str, Any],
    expected: dict[tuple[str, int], str],
    ends: Counter[str],
) -> None:
    body = {"model": "smollm2", "max_tokens": MAX_TOKENS, "stream": True, **ask}
    if kind == "read":
        text = await _read(session, body, ends)
        assert text == expected[ask["prompt"], ask["seed"]], f"{ask}: {text!r}"
    elif kind == "leave":
        await _leave(session, body)
    else:
        data, allowed = _refused(kind, body)
        async with session.post("/v1/completions", data=data, headers={"content-type": "application/json"}) as answer:
            assert answer.status in allowed, f"{kind} was answered with {answer.status}"
            assert "message" in (await answer.json())["error"]
    ends[kind] += 1


async def _read(session: aiohttp.ClientSession, body: dict[str, Any], ends: Counter[str]) -> str:
    """The whole text, after as many tries as it takes."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            async with session.post("/v1/completions", json=body) as answer:
                if answer.status == 503:
                    ends["503"] += 1
                    await asyncio.sleep(0.2)
                    continue
                assert answer.status == 200, await answer.text()
                events = []
                async for line in answer.content:
                    if line.startswith(b"data: "):
                        ends["begun"] += not events
                        events.append(line[6:])
        except aiohttp.ClientConnectionError:
            ends["connection lost"] += 1
            continue
        chunks = [json.loads(event) for event in events if event.strip() != b"[DONE]"]
        if any("error" in chunk for chunk in chunks):
            ends["error in a stream"] += 1
            continue
        return "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])
    raise AssertionError("nobody answered")


async def _leave(session: aiohttp.ClientSession, body: dict[str, Any]) -> None:
    """Hang up after the first line, or before it."""
    async with session.post("/v1/completions", json={**body, "max_tokens": 400}) as answer:
        if body["seed"] % 2:
            await answer.content.readline()


def _refused(kind: str, body: dict[str, Any]) -> tuple[bytes, tuple[int, ...]]:
    if kind == "garble":
        return json.dumps(body).encode()[:-7] + b"\xff{", (400,)
    if kind == "misname":
        return json.dumps({**body, "model": "nobody"}).encode(), (404,)
    return json.dumps({**body, "prompt": "word " * 4000}).encode(), (400, 413, 503)  # 503: while the engine is down


def _open_files(server: LiveServer) -> list[int]:
    """The front ends' processes; the engine is a new one afterwards."""
    return [len(os.listdir(f"/proc/{pid}/fd")) for name, pid in sorted(server.children().items()) if name != "engine"]


def _metric(server: LiveServer, name: str) -> float:
    status, text = server.get("/metrics")
    if status != 200:
        return -1.0
    found = re.search(rf"^{re.escape(name)}{{.*}} (\S+)$", text.decode(), re.MULTILINE)
    assert found is not None, f"no {name} in /metrics"
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        ends = storm(Path(directory), args.streams, args.seed)
    print(f"{args.streams} streams, {time.perf_counter() - begin:.1f} s: {dict(ends)}; nothing lost, nothing left")


if __name__ == "__main__":
    main()
