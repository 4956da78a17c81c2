"""Load on a server: requests sent at their times, or as fast as others end, by one process or by several.

request 0   |--send----first--piece--piece-----last--|
request 1      |--send--------first--piece--last--|            arrivals: gamma-distributed gaps, or all at once
long prompt         |--send----------------first--|            beside them, every so often, if asked for

Several processes share the requests like cards, each with its part of max_concurrency, and begin at one moment of
the monotonic clock, which is the same for all processes of a host.
"""

from __future__ import annotations

import asyncio
import gc
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from octavo.bench.answer import Answer
from octavo.bench.http_client import Client, Target
from octavo.errors import ConfigError

RampUpStrategy = Literal["linear", "exponential"]
OnProgress = Callable[[int], None]  # how many more requests have ended


@dataclass(frozen=True, slots=True)
class Sending:
    """One request, ready to go. at: seconds after the beginning."""

    index: int
    at: float
    request: bytes
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class LoadShare:
    """What one process sends. long_prompts go one every `long_every` seconds while other requests, of any process, are
    unfinished."""

    target: Target
    sendings: tuple[Sending, ...]
    max_concurrency: int | None = None
    long_prompts: tuple[Sending, ...] = ()
    long_every: float = math.inf
    keep_text: bool = False


@dataclass(slots=True)
class Sent:
    """What came back. cpu: busy seconds of the client process; near to `seconds` it was the bottleneck."""

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
    """A rate that grows over a run from one to another, requests a second: by the same amount with each request
    (linear), or by the same factor (exponential)."""

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
        """Of each request, the first at the one end and the last at the other."""
        shares = [index / max(1, num_requests - 1) for index in range(num_requests)]
        if self.strategy == "linear":
            return [self.start_rps + (self.end_rps - self.start_rps) * share for share in shares]
        return [self.start_rps * (self.end_rps / self.start_rps) ** share for share in shares]


def arrivals(rates: Sequence[float], burstiness: float, seed: int) -> list[float]:
    """Seconds at which requests are sent, a rate each: at once where it is infinite, else a gamma-distributed gap of
    mean 1 / rate before the next; burstiness 1 is a Poisson process, less comes in bursts, more comes evenly."""
    rng = random.Random(seed)
    at, times = 0.0, []
    for rate in rates:
        times.append(at)
        at += 0.0 if math.isinf(rate) else rng.gammavariate(burstiness, 1.0 / (rate * burstiness))
    # Scaled, so that a short run has exactly the rate it was asked for, as vLLM does.
    stretch = sum(1.0 / rate for rate in rates) / at if at else 1.0
    return [one * stretch for one in times]


def shares(whole: LoadShare, num_procs: int) -> list[LoadShare]:
    """The whole, dealt like cards; the first process also sends the long prompts."""
    limit = whole.max_concurrency
    dealt = []
    for rank in range(num_procs):
        part = None if limit is None else limit // num_procs + (rank < limit % num_procs)
        mine = whole.sendings[rank::num_procs]
        dealt.append(
            replace(whole, sendings=mine, max_concurrency=part, long_prompts=whole.long_prompts if rank == 0 else ())
        )
    return dealt


class Company(Protocol):
    """The processes that share a load."""

    def leave(self) -> None:
        """This one's requests have ended."""

    def is_gone(self) -> bool:
        """Whether everybody's have."""


class Alone:
    """The company of a process that has none."""

    def leave(self) -> None:
        pass

    def is_gone(self) -> bool:
        return True


def run_share(
    share: LoadShare, begin_at: Callable[[], float], on_progress: OnProgress, company: Company | None = None
) -> Sent:
    """Send it all from this process and wait for every answer. `begin_at` gives the moment to begin, once ready."""
    allow_many_files()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        gc.collect()
        gc.freeze()  # prompts and bodies are not looked through again while times are taken
        try:
            return runner.run(_drive(share, begin_at, on_progress, company or Alone()))
        finally:
            gc.unfreeze()


def allow_many_files() -> None:
    """A socket is a file, and many systems allow only 1024 unless asked."""
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


async def _drive(share: LoadShare, begin_at: Callable[[], float], on_progress: OnProgress, company: Company) -> Sent:
    client = Client(share.target)
    await client.resolve()
    sent = Sent()
    turn = None if share.max_concurrency is None else asyncio.Semaphore(share.max_concurrency)

    async def one(sending: Sending) -> None:
        answer = Answer(sending.index)
        sent.answers.append(answer)
        if turn is not None:
            await turn.acquire()
        try:
            await client.stream(sending.request, answer, sending.num_prompt_tokens, share.keep_text)
        finally:
            if turn is not None:
                turn.release()
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
    company.leave()
    while share.long_prompts and not company.is_gone():
        await asyncio.sleep(0.01)
    long_ones.cancel()
    await asyncio.gather(long_ones, return_exceptions=True)
    client.close()
    return sent


async def _send_long_prompts(share: LoadShare, client: Client, begin: float, answers: list[Answer]) -> None:
    """One each `long_every` seconds, the first after that long, until cancelled; the list goes round if it ends."""
    async with asyncio.TaskGroup() as group:
        for number in range(sys.maxsize if share.long_prompts else 0):
            await _sleep_until(begin + (number + 1) * share.long_every)
            sending = share.long_prompts[number % len(share.long_prompts)]
            answer = Answer(number)
            answers.append(answer)
            group.create_task(client.stream(sending.request, answer, sending.num_prompt_tokens))


async def _sleep_until(moment: float) -> None:
    delay = moment - time.monotonic()
    if delay > 0:
        await asyncio.sleep(delay)
