"""Load on a server: requests sent on schedule, or as earlier ones end, from one process or several.

request 0   |--send----first--piece--piece-----last--|
request 1      |--send--------first--piece--last--|            arrivals: gamma-distributed gaps, or all at once
long prompt         |--send----------------first--|            in addition, at intervals, if requested

Several processes deal the requests out in turn, each with its part of max_concurrency, and begin at the same moment
of the host's monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from octavo.bench.answer import Answer, stream
from octavo.bench.http_client import Client, Target
from octavo.errors import ConfigError

RampUpStrategy = Literal["linear", "exponential"]
OnProgress = Callable[[int], None]  # how many more requests have ended


@dataclass(frozen=True, slots=True)
class Sending:
    """One encoded request. at: seconds after the start."""

    index: int
    at: float
    request: bytes
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class LoadShare:
    """The requests of one process. One of long_prompts is sent every `long_every` seconds until the requests of all
    processes have ended."""

    target: Target
    sendings: tuple[Sending, ...]
    max_concurrency: int | None = None
    long_prompts: tuple[Sending, ...] = ()
    long_every: float = math.inf
    keep_text: bool = False


@dataclass(slots=True)
class Sent:
    """The answers. cpu: CPU seconds of the client process; close to `seconds`, the client was the bottleneck."""

    answers: list[Answer] = field(default_factory=list)
    long_answers: list[Answer] = field(default_factory=list)
    begin: float = 0.0
    end: float = 0.0
    cpu: float = 0.0

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class RampUp:
    """A rate in requests per second that grows over a run: by the same amount with each request (linear), or by the
    same factor (exponential)."""

    strategy: RampUpStrategy
    start_rps: float
    end_rps: float

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            rate = getattr(self, f"{name}_rps")
            if not 0 < rate < math.inf:
                raise ConfigError(f"--ramp-up-{name}-rps is {rate:g}, allowed are numbers above 0")
        if self.start_rps > self.end_rps:
            raise ConfigError(
                f"--ramp-up-start-rps is {self.start_rps:g}, allowed is up to --ramp-up-end-rps, which is "
                f"{self.end_rps:g}: swap them"
            )

    def rates(self, num_requests: int) -> list[float]:
        """The rate at each request, from start_rps to end_rps."""
        shares = [index / max(1, num_requests - 1) for index in range(num_requests)]
        if self.strategy == "linear":
            return [self.start_rps + (self.end_rps - self.start_rps) * share for share in shares]
        return [self.start_rps * (self.end_rps / self.start_rps) ** share for share in shares]


def arrivals(rates: Sequence[float], burstiness: float, seed: int) -> list[float]:
    """The send times in seconds, from each request's rate: no gap if it is infinite, else a gamma-distributed gap of
    mean 1 / rate before the next. Burstiness 1 is a Poisson process, less gives bursts, more an even pace."""
    rng = random.Random(seed)
    at, times = 0.0, []
    for rate in rates:
        times.append(at)
        at += 0.0 if math.isinf(rate) else rng.gammavariate(burstiness, 1.0 / (rate * burstiness))
    # Scaled, as in vLLM, so that even a short run has exactly the requested rate.
    stretch = sum(1.0 / rate for rate in rates) / at if at else 1.0
    return [one * stretch for one in times]


def shares(whole: LoadShare, num_procs: int) -> list[LoadShare]:
    """The load dealt out in turn; the first process also sends the long prompts."""
    limit = whole.max_concurrency
    dealt = []
    for rank in range(num_procs):
        part = None if limit is None else limit // num_procs + (rank < limit % num_procs)
        mine = whole.sendings[rank::num_procs]
        dealt.append(
            replace(whole, sendings=mine, max_concurrency=part, long_prompts=whole.long_prompts if rank == 0 else ())
        )
    return dealt


def run_share(
    share: LoadShare,
    begin_at: Callable[[], float],
    on_progress: OnProgress,
    leave: Callable[[], None] = lambda: None,
    is_over: Callable[[], bool] = lambda: True,
) -> Sent:
    """Send all requests and wait for the answers. begin_at: called when ready; returns the start time. leave: called
    when this process's requests have ended. is_over: whether those of all processes have."""
    allow_many_files()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        gc.collect()
        gc.freeze()  # no garbage collection over prompts and bodies while timing
        try:
            return runner.run(_drive(share, begin_at, on_progress, leave, is_over))
        finally:
            gc.unfreeze()


def allow_many_files() -> None:
    """Raise the limit of open files: every socket is one, and the default is often 1024."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    if sys.platform == "win32":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


async def _drive(
    share: LoadShare,
    begin_at: Callable[[], float],
    on_progress: OnProgress,
    leave: Callable[[], None],
    is_over: Callable[[], bool],
) -> Sent:
    client = Client(share.target)
    await client.resolve()
    sent = Sent()
    turn = contextlib.nullcontext() if share.max_concurrency is None else asyncio.Semaphore(share.max_concurrency)

    async def one(sending: Sending) -> None:
        answer = Answer(sending.index)
        sent.answers.append(answer)
        async with turn:
            await stream(client, sending.request, answer, sending.num_prompt_tokens, share.keep_text)
        on_progress(1)

    begin = begin_at()
    await _sleep_until(begin)
    sent.begin, cpu = time.monotonic(), time.process_time()
    long_ones = asyncio.create_task(_send_long_prompts(share, client, begin, sent.long_answers))
    tasks = []
    for sending in share.sendings:
        await _sleep_until(begin + sending.at)
        tasks.append(asyncio.create_task(one(sending)))
    await asyncio.gather(*tasks)
    sent.end, sent.cpu = time.monotonic(), time.process_time() - cpu
    leave()
    while share.long_prompts and not is_over():
        await asyncio.sleep(0.01)
    long_ones.cancel()
    await asyncio.gather(long_ones, return_exceptions=True)
    client.close()
    return sent


async def _send_long_prompts(share: LoadShare, client: Client, begin: float, answers: list[Answer]) -> None:
    """Send one every `long_every` seconds until cancelled; the list repeats if it ends."""
    async with asyncio.TaskGroup() as group:
        for number in range(sys.maxsize if share.long_prompts else 0):
            await _sleep_until(begin + (number + 1) * share.long_every)
            sending = share.long_prompts[number % len(share.long_prompts)]
            answer = Answer(number)
            answers.append(answer)
            group.create_task(stream(client, sending.request, answer, sending.num_prompt_tokens))


async def _sleep_until(moment: float) -> None:
    delay = moment - time.monotonic()
    if delay > 0:
        await asyncio.sleep(delay)
