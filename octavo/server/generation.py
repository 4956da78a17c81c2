"""One call's work for the engine: its prompts, each an engine request, their sampling, and one stream of outputs.

POST {"prompt": ["a", "b"]} ── id "cmpl-1" ──┬── engine request "cmpl-1-0-5e1f09ab" ──┐
                                             └── engine request "cmpl-1-1-5e1f09ab" ──┴──▶ RequestOutputs, as they come
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from octavo.engine.input import Prompt
from octavo.engine.llm_engine import EngineClient
from octavo.errors import InvalidRequestError
from octavo.lora_request import LoRARequest
from octavo.observe.tracing import TRACE_HEADERS
from octavo.outputs import RequestOutput
from octavo.pooling_params import PoolingParams
from octavo.request import ModelInfo
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.server.api_errors import ApiError, as_api_error, bad_field
from octavo.server.merged_streams import MergedStreams
from octavo.server.protocol import SAME, GenerationRequest
from octavo.server.response_format import asked_form
from octavo.server.serving import Serving
from octavo.server.settings import ServerSettings
from octavo.server.streaming import closing
from octavo.shown import shown

#: vLLM's name of the header that chooses an engine
RANK_HEADER = "x-data-parallel-rank"
_MAX_BIASES = _MAX_IDS = 4096  # each is checked separately


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """prompts: token ids, or pairs of texts as dicts. trace_headers: the call's headers that continue its caller's
    trace. data_parallel_rank: the engine that its caller names. serial: tells calls with the same id apart: a proxy may
    send one id for all of a page's calls, and a client may retry with its first."""

    request_id: str
    prompts: Sequence[Prompt]
    params: SamplingParams | PoolingParams
    priority: int = 0
    cache_salt: str | None = None
    trace_headers: Mapping[str, str] | None = None
    data_parallel_rank: int | None = None
    lora_request: LoRARequest | None = None
    serial: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def engine_request_id(self, place: int) -> str:
        """The engine's id for the prompt at this place."""
        return f"{self.request_id}-{place}-{self.serial}"


def from_headers(request: Request) -> dict[str, Any]:
    """The fields of a Generation that the call's headers set."""
    found = {name: value for name in TRACE_HEADERS if (value := request.headers.get(name)) is not None}
    rank = request.headers.get(RANK_HEADER)
    if rank is not None and not (rank.isascii() and rank.isdecimal() and len(rank) <= 9):
        raise ApiError(400, f"the header {RANK_HEADER} is {shown(rank)}, allowed is the number of an engine")
    return {"trace_headers": found or None, "data_parallel_rank": None if rank is None else int(rank)}


def sampling_params(asked: GenerationRequest, serving: Serving, **more: Any) -> SamplingParams:
    """The request's fields over the model's defaults. more: the fields that each route reads in its own way."""
    given = {name: getattr(asked, name) for name in SAME}
    given["logprob_token_ids"] = asked.logprob_token_ids or None  # [] asks for nothing
    if asked.response_format is not None or asked.structured_outputs is not None:
        given["structured_outputs"] = asked_form(asked.response_format, asked.structured_outputs)
    if asked.logit_bias is not None:
        given["logit_bias"] = _logit_bias(asked.logit_bias)
    return checked_params(serving.client.model_info.default_sampling_params, serving.settings, **given, **more)


def recommended_length(info: ModelInfo) -> int:
    """The max_tokens that the model's sampling defaults recommend; without one, the context's size."""
    most = info.default_sampling_params.max_tokens
    return info.max_model_len if most is None or most == SamplingParams().max_tokens else most


def _logit_bias(bias: Mapping[str, int | float]) -> dict[int, float]:
    if len(bias) > _MAX_BIASES:
        raise bad_field("logit_bias", f"holds {len(bias)} tokens, allowed are {_MAX_BIASES}")
    for key in bias:
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise bad_field("logit_bias", f"has the key {shown(key)}, allowed are token ids")
    return {int(key): value for key, value in bias.items()}


def checked_params(defaults: SamplingParams, settings: ServerSettings, **fields: Any) -> SamplingParams:
    """The model's recommended defaults, replaced by the fields that are not None. Raises ApiError."""
    for name in ("stop", "bad_words"):
        if fields.get(name):
            _check_strings(name, fields[name], settings)
    for name in ("stop_token_ids", "allowed_token_ids"):
        if (num := len(fields.get(name) or ())) > _MAX_IDS:
            raise bad_field(name, f"holds {num} token ids, allowed are {_MAX_IDS}")
    try:
        return defaults.replace(**{name: value for name, value in fields.items() if value is not None})
    except InvalidRequestError as error:
        raise as_api_error(error) from None


def _check_strings(name: str, value: str | list[str], settings: ServerSettings) -> None:
    strings = [value] if isinstance(value, str) else value
    most, longest = settings.max_stop_strings, max(map(len, strings))
    if len(strings) > most:
        raise bad_field(name, f"holds {len(strings)} strings, allowed are {most}; --max-stop-strings raises it")
    if longest > (most := settings.max_stop_string_len):
        raise bad_field(
            name, f"holds a string of {longest} characters, allowed are {most}; --max-stop-string-len raises it"
        )


def stream(client: EngineClient, generation: Generation) -> AsyncGenerator[RequestOutput]:
    """New tokens and text as they come. Leaving early ends all of the call's engine requests."""
    return _run(client, generation, RequestOutputKind.DELTA)


async def complete(client: EngineClient, generation: Generation) -> list[RequestOutput]:
    """One finished output for each prompt, in order."""
    places = {generation.engine_request_id(place): place for place in range(len(generation.prompts))}
    done: dict[int, RequestOutput] = {}
    async with contextlib.aclosing(_run(client, generation, RequestOutputKind.FINAL_ONLY)) as outputs:
        async for output in outputs:
            raise_failure(output)
            done[places[output.request_id]] = output
    return [done[place] for place in range(len(generation.prompts))]


def raise_failure(output: RequestOutput) -> None:
    """A sequence that failed in the engine is a server error, not an answer."""
    for completion in output.outputs:
        if completion.finish_reason == "error":
            raise ApiError(500, f"the engine failed at this request: {completion.stop_reason}", code="engine_failure")


def ended_by_server() -> ApiError:
    """The error of an answer that neither the model nor the client ended."""
    return ApiError(503, "the request was ended by the server; send it again", code="aborted")


async def _run(client: EngineClient, generation: Generation, kind: RequestOutputKind) -> AsyncGenerator[RequestOutput]:
    params = generation.params.clone(kind)
    streams = [
        client.generate(
            prompt,
            params,
            generation.engine_request_id(place),
            priority=generation.priority,
            cache_salt=generation.cache_salt,
            trace_headers=generation.trace_headers,
            data_parallel_rank=generation.data_parallel_rank,
            lora_request=generation.lora_request,
        )
        for place, prompt in enumerate(generation.prompts)
    ]
    outputs = streams[0] if len(streams) == 1 else MergedStreams().outputs(dict(enumerate(streams)))
    async with closing(outputs):
        async for output in outputs:
            yield output
