"""Many requests through a live server: the CPU time and memory of its processes, and whether memory stays flat.

    python -m tests.server.soak --requests 3000 --concurrency 16 --max-tokens 64

After each tenth of the requests it prints the resident memory of each process and its share of one core since the last
line. At the end the memory may have grown by at most a twentieth since the first third.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from pathlib import Path

import aiohttp

from tests.server.chaos import PROMPTS
from tests.server.live import API, LiveServer, live

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, live(Path(directory), API) as server:
        sizes = asyncio.run(_soak(server, args.requests, args.concurrency, args.max_tokens))
        assert server.stop() == 0
    for name in sizes[0]:
        early, late = sizes[len(sizes) // 3][name], sizes[-1][name]
        assert late < early * 1.05, f"{name} grew from {early >> 20} to {late >> 20} MiB"
    print("memory is flat")


async def _soak(server: LiveServer, num_requests: int, concurrency: int, max_tokens: int) -> list[dict[str, int]]:
    rng = random.Random(0)
    left = iter(range(num_requests))
    num_done = 0
    sizes: list[dict[str, int]] = []
    then, used = time.perf_counter(), _cpu_seconds(server)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}", connector=connector) as session:

        async def worker() -> None:
            nonlocal num_done, then, used
            for _ in left:
                length = rng.randint(1, 2 * max_tokens - 1)
                prompt = " ".join(rng.choice(PROMPTS) for _ in range(rng.randint(1, 12)))
                messages = [{"role": "user", "content": prompt}]
                body = {"messages": messages, "max_tokens": length, "stream": True, "ignore_eos": True}
                async with session.post("/v1/chat/completions", json=body) as answer:
                    assert answer.status == 200, await answer.text()
                    events = [line async for line in answer.content if line.startswith(b"data: ")]
                    assert events[-1].strip() == b"data: [DONE]", events[-1]
                num_done += 1
                if num_done % (num_requests // 10) == 0:
                    sizes.append(_resident(server))
                    now, total = time.perf_counter(), _cpu_seconds(server)
                    shares = {name: (total[name] - used[name]) / (now - then) for name in total}
                    then, used = now, total
                    print(num_done, {n: f"{sizes[-1][n] >> 20} MiB, {shares[n]:.1%}" for n in shares}, flush=True)

        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return sizes


def _resident(server: LiveServer) -> dict[str, int]:
    """Bytes that belong to the process: without the model's file, which is mapped."""
    sizes = {}
    for name, pid in server.children().items():
        _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
        sizes[name] = (resident - shared) * _PAGE
    return sizes


def _cpu_seconds(server: LiveServer) -> dict[str, float]:
    fields = {name: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1] for name, pid in server.children().items()}
    return {name: sum(map(int, text.split()[11:13])) / _TICKS for name, text in fields.items()}


if __name__ == "__main__":
    main()
