"""Engines on threads, behind real sockets, which may hand each other blocks."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from octavo import LLM, SamplingParams
from octavo.cache.invariants import check
from octavo.channel import Channel, Note
from octavo.engine.assemble import build_engine
from octavo.engine.core import EngineCore
from octavo.engine.options import engine_config
from octavo.observe.events import BlocksCame, Event
from octavo.processes.engine_loop import EngineLoop
from octavo.processes.household import EngineTask, TrafficTask
from octavo.processes.process_client import ProcessClient
from octavo.server_config import AdmissionConfig
from octavo.text.tokenizer import Tokenizer

SECRET = b"a secret of all engines"
SIZES: dict[str, Any] = {"num_threads": 1, "max_model_len": 256, "max_num_seqs": 8, "num_gpu_blocks_override": 128}
OPTIONS: dict[str, Any] = {
    **SIZES,
    **{"backend": "cpu", "kv_cache_dtype": "float32", "skip_tokenizer_init": True, "check_invariants": True},
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False)
_NUMBERS = itertools.count()  # each engine and each front end has its own
PATIENCE_S = 60.0  # the machine may be busy


class ThreadEngine:
    """An engine's loop on a thread, and one client of it."""

    def __init__(
        self,
        directory: Path,
        model: Path | str,
        traffic: TrafficTask | None = None,
        *,
        admission: AdmissionConfig | None = None,
        tokenizer: Tokenizer | None = None,
        **options: Any,
    ) -> None:
        """tokenizer: its clients'; None: its own."""
        ours, theirs = socket.socketpair()
        number = next(_NUMBERS)
        self.channel = Channel(ours)
        self.address = f"ipc://{directory}/engine-{number}"
        config = engine_config(model=str(model), **{**OPTIONS, **options})
        task = EngineTask(
            config=config,
            admission=admission or AdmissionConfig(),
            address=self.address,
            model_name="tiny",
            hang_timeout_s=0.0,
            logs_stats=False,
            run_directory=str(directory),
            step_record=f"{directory}/step-{number}",
            num_deaths={},
            traffic=traffic,
        )
        self.engine = build_engine(config)
        self.tokenizer = self.engine.tokenizer if tokenizer is None else tokenizer
        assert isinstance(self.engine.core, EngineCore)
        self.core = self.engine.core
        self.loop = EngineLoop(task, self.engine, Channel(theirs))
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    @property
    def came(self) -> list[BlocksCame]:
        return [event for event in self.engine.events if isinstance(event, BlocksCame)]

    @property
    def events(self) -> list[Event]:
        return list(self.engine.events)

    def answer(self, prompts: Sequence[Sequence[int]], params: SamplingParams = GREEDY, **rest: Any) -> list[list[int]]:
        """Tokens of the first sequence of each prompt, all asked for at once."""
        asked = self.with_client(
            lambda client: asyncio.gather(*(self._one(client, one, params, **rest) for one in prompts))
        )
        return list(asked)

    def client(self) -> ProcessClient:
        """Another front end's."""
        client = ProcessClient(self.tokenizer, next(_NUMBERS), 0)
        client.connect(self.address)
        return client

    def with_client(self, work: Callable[[ProcessClient], Awaitable[Any]]) -> Any:
        """Run a coroutine function with a connected client."""

        async def run() -> Any:
            client = self.client()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await client.welcomed()
                    return await work(client)
            finally:
                client.close()
                self.channel.send(Note("front_end_gone", text=client.identity))

        return asyncio.run(run())

    @staticmethod
    async def _one(client: ProcessClient, prompt: Sequence[int], params: SamplingParams, **rest: Any) -> list[int]:
        prompt = {"prompt_token_ids": list(prompt)}  # type: ignore[assignment]
        token_ids: list[int] = []
        async for output in client.generate(prompt, params, **rest):  # type: ignore[arg-type]
            token_ids = list(output.outputs[0].token_ids)
        return token_ids

    def stop(self) -> None:
        """All that it lent has come back by then, but for what a message on its way still asks for: wait for that."""
        deadline = time.monotonic() + PATIENCE_S / 2
        while self.core.cache.pool.lent and time.monotonic() < deadline:
            time.sleep(0.01)
        self.channel.send(Note("stop"))
        self.thread.join(20)
        assert not self.thread.is_alive()
        try:
            assert not self.core.cache.pool.lent, "every loan has been settled"
            check(self.core.cache, self.core._scheduler.sequences)
        finally:
            self.loop.close()  # or its sockets would hold up the garbage collector, and with it the other tests


def smollm2_engine(directory: Path, like: LLM, **options: Any) -> ThreadEngine:
    """One whose answers are those of `like`, an LLM of smollm2 with the same sizes."""
    alike = {"backend": "auto", "kv_cache_dtype": "auto", "tokenizer": like.get_tokenizer()}
    return ThreadEngine(directory, "smollm2", **alike | options)


def lends(address: str) -> TrafficTask:
    return TrafficTask(secret=SECRET, timeout_s=20.0, min_tokens=16, listens=address)


def borrows(*addresses: str, timeout_s: float = 20.0, min_tokens: int = 16) -> TrafficTask:
    return TrafficTask(secret=SECRET, timeout_s=timeout_s, min_tokens=min_tokens, peers=addresses)
