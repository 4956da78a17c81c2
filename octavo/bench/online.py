"""Measures any server with OpenAI's API over HTTP: the requests, their format and their timing."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from octavo.bench.answer import MAX_ERROR_LEN, Answer, stream
from octavo.bench.datasets import BenchRequest
from octavo.bench.http_client import Client, Target
from octavo.bench.load import LoadShare, OnProgress, RampUp, Sending, arrivals
from octavo.bench.load_processes import processes_for, run_load
from octavo.bench.online_report import Outcome
from octavo.errors import ConfigError, OctavoError

Backend = Literal["openai", "openai-chat", "vllm"]
ENDPOINTS: dict[Backend, str] = {
    "openai": "/v1/completions",
    "vllm": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
}
RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Form:
    """How a BenchRequest is encoded. options: extra fields for every request."""

    backend: Backend
    endpoint: str
    model: str
    ignore_eos: bool
    options: Mapping[str, Any] = field(default_factory=dict)

    def body(self, request: BenchRequest) -> bytes:
        if self.backend == "openai-chat":
            assert isinstance(request.prompt, str), "a chat is asked in text"
            said = {"role": "user", "content": request.prompt}
            asked = {"messages": [said], "max_completion_tokens": request.output_len}
        else:
            asked = {"prompt": request.prompt, "max_tokens": request.output_len}
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        many = {"n": request.n} if request.n > 1 else {}
        eos = {"ignore_eos": True} if self.ignore_eos else {}
        return msgspec.json.encode({"model": self.model, **asked, **many, **eos, **streamed, **self.options})


@dataclass(frozen=True, slots=True)
class Timing:
    """When requests are sent. long_every: seconds between additional long prompts, inf for none. num_procs: None
    chooses the number of client processes. ramp_up: replaces request_rate."""

    request_rate: float = math.inf
    ramp_up: RampUp | None = None
    burstiness: float = 1.0
    max_concurrency: int | None = None
    seed: int = 0
    num_procs: int | None = None
    long_every: float = math.inf

    def __post_init__(self) -> None:
        for name in ("request_rate", "burstiness", "long_every"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}, allowed is above 0")

    @property
    def pace(self) -> str:
        """The request rate in words."""
        if self.ramp_up is not None:
            return f"{self.ramp_up.start_rps:g} to {self.ramp_up.end_rps:g} requests/s, {self.ramp_up.strategy}"
        return f"{self.request_rate:g} requests/s" if math.isfinite(self.request_rate) else "all at once"

    def rates(self, num_requests: int) -> list[float]:
        """The rate at each request."""
        return [self.request_rate] * num_requests if self.ramp_up is None else self.ramp_up.rates(num_requests)

    def processes(self, num_prompts: int) -> int:
        num_streams = min(num_prompts, self.max_concurrency or num_prompts)
        return min(self.num_procs or processes_for(num_streams), num_streams)


@dataclass(frozen=True, slots=True)
class Server:
    """A server and its request format."""

    target: Target
    form: Form

    def measure(
        self,
        requests: Sequence[BenchRequest],
        timing: Timing,
        on_progress: OnProgress,
        long_requests: Sequence[BenchRequest] = (),
        keep_text: bool = False,
    ) -> Outcome:
        times = arrivals(timing.rates(len(requests)), timing.burstiness, timing.seed)
        share = LoadShare(
            target=self.target,
            sendings=self._sendings(requests, times),
            max_concurrency=timing.max_concurrency,
            long_prompts=self._sendings(long_requests, [0.0] * len(long_requests)),
            long_every=timing.long_every,
            keep_text=keep_text,
        )
        sent = run_load(share, timing.processes(len(requests)), on_progress)
        asked_n = self.form.options.get("n")  # overrides the request's own, as in the body
        return Outcome(sent, {index: asked_n or one.n for index, one in enumerate(requests)}, len(long_requests))

    def wait_until_ready(self, request: BenchRequest, timeout_s: float) -> None:
        """Retry one request for `timeout_s`; raise OctavoError with the last error."""
        give_up_at = time.monotonic() + timeout_s
        while error := self._try(request, 1)[0].error:
            if time.monotonic() + RETRY_S > give_up_at:
                raise OctavoError(
                    f"the server at {self.target.base_url}{self.form.endpoint} did not answer a first request: {error}"
                )
            time.sleep(RETRY_S)

    def warm_up(self, request: BenchRequest, num_requests: int) -> None:
        """Send uncounted requests one after another."""
        failed = [answer for answer in self._try(request, num_requests) if answer.error]
        if failed:
            raise OctavoError(f"a warm-up request failed: {failed[0].error}")

    def _try(self, request: BenchRequest, num_requests: int) -> list[Answer]:
        """Send the prompt reversed, so that the measured prompts are not in the prefix cache."""
        backwards = BenchRequest(request.prompt[::-1], min(request.output_len, 8), 1, request.num_prompt_tokens)
        sending = self._sendings([backwards], [0.0])[0]

        async def run() -> list[Answer]:
            client = Client(self.target)
            answers = [Answer(index) for index in range(num_requests)]
            for answer in answers:
                await stream(client, sending.request, answer, sending.num_prompt_tokens)
            client.close()
            return answers

        return asyncio.run(run())

    def _sendings(self, requests: Sequence[BenchRequest], times: Sequence[float]) -> tuple[Sending, ...]:
        path = self.form.endpoint
        return tuple(
            Sending(index, at, self.target.request("POST", path, self.form.body(request)), request.num_prompt_tokens)
            for index, (request, at) in enumerate(zip(requests, times, strict=True))
        )


def first_model(target: Target) -> str:
    """The first name in /v1/models. Raises ConfigError if there is none."""

    body = bytearray()

    async def ask() -> int:
        client = Client(target)
        try:
            return await client.send(target.request("GET", "/v1/models"), lambda data, now: body.extend(data))
        finally:
            client.close()

    try:
        status = asyncio.run(ask())
        if status != 200:
            raise OSError(f"HTTP {status}: {body.decode('utf-8', 'replace')[:MAX_ERROR_LEN]}")
        return str(msgspec.json.decode(body)["data"][0]["id"])
    except (OSError, msgspec.DecodeError, RecursionError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(
            f"{target.base_url}/v1/models lists no model ({type(error).__name__}: {error}): is the server running? "
            "Start one with octavo serve MODEL, give --host and --port of another, or name its model with --model"
        ) from None
