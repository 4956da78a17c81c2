"""The messages between front ends and the engine's process: MessagePack over ZMQ, through a Unix socket.

    front end 0  DEALER ─┐                         up:    AddRequest, Abort, AbortById, FinishSequence, ...
    front end 1  DEALER ─┼── ROUTER  engine        down:  StepNews, once a step; Refusal, Reply, Welcome, GivenUp, Load
    front end 2  DEALER ─┘

A request is named by its key, a number that its front end chooses; a sequence by the key and its index. A step's news
for a front end is one message of columns, since nearly every sequence gets one token and nothing else.

Times are from the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import msgspec
import zmq

from octavo.engine.lazy_logprobs import PackedLogprobs
from octavo.lora_request import LoRARequest
from octavo.messages import LogprobRow
from octavo.outputs import FinishReason
from octavo.pooling_params import PoolingParams
from octavo.processes.router import Piece
from octavo.request import Request, RequestLimits
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import Thoughts

#: messages that may wait for a front end that does not read; beyond, its requests are given up
MAX_UNREAD = 20_000
#: bytes, likewise; one message may exceed it
MAX_UNREAD_SIZE = 256 * 2**20
#: bytes after which a front end reports what it has read
READ_SIZE = 2**20


class Hello(msgspec.Struct, array_like=True, tag=0):
    """A front end has connected, and asks for a Welcome."""


class AddRequest(msgspec.Struct, array_like=True, tag=1):
    """A request, checked and tokenised. sampling_params: the fields that differ from the default. fingerprint: the same
    for equal prompts with equal parameters. work, pieces: what other front ends' routers are told of it (router.py)."""

    key: int
    request_id: str
    prompt_token_ids: list[int]
    sampling_params: dict[str, Any]
    seed: int
    arrival_time: float
    max_output_tokens: int
    priority: int
    cache_salt: str | None
    eos_token_ids: frozenset[int]
    stop_token_ids: frozenset[int]
    bad_word_ids: tuple[tuple[int, ...], ...]
    trace_headers: dict[str, str] | None
    fingerprint: str
    work: int = 0
    pieces: list[Piece] = []
    begun_token_ids: tuple[int, ...] = ()
    grammar: str | None = None
    thoughts: Thoughts | None = None
    pooling_params: PoolingParams | None = None
    second_text: int = 0
    lora_request: LoRARequest | None = None


class Abort(msgspec.Struct, array_like=True, tag=2):
    """End a request that nobody reads any more."""

    key: int


class AbortById(msgspec.Struct, array_like=True, tag=3):
    """End a request of any front end."""

    request_id: str


class FinishSequence(msgspec.Struct, array_like=True, tag=4):
    """End a sequence whose text has a stop string."""

    key: int
    index: int
    stop: str


class Question(msgspec.Struct, array_like=True, tag=5):
    """A question, or something to do; the Reply has the same number. about: one of those of EngineLoop."""

    number: int
    about: str


class HasRead(msgspec.Struct, array_like=True, tag=6):
    """The number of bytes read since the last HasRead."""

    num_bytes: int


class Adapters(msgspec.Struct, array_like=True, tag=7):
    """Load an adapter, unload one by its lora_int_id, or neither. The Reply with the same number has an AdaptersAre."""

    number: int
    load: LoRARequest | None = None
    unload: int | None = None


class AdaptersAre(msgspec.Struct, array_like=True):
    """The adapters that are loaded now. refusal: why what was asked was not done."""

    loaded: list[LoRARequest]
    refusal: str = ""


class Welcome(msgspec.Struct, array_like=True, tag=16):
    """Describes the loaded model. num_cache_tokens: prompt tokens that its prefix cache can hold."""

    limits: RequestLimits
    num_cache_tokens: int
    default_sampling_params: dict[str, Any]
    card: list[tuple[str, str]]


class SequenceNews(msgspec.Struct, array_like=True):
    """News of a sequence that is more than one plain token: the first news of its request, log-probabilities, its end.

    num_sequences: the number of the request's sequences so far. prompt_logprobs and the fields below are the request's.
    """

    key: int
    index: int
    token_ids: list[int]
    num_sequences: int
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[LogprobRow] = []
    prompt_logprobs: list[PackedLogprobs] = []
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    first_scheduled_time: float | None = None
    pooled: bytes | None = None


class StepNews(msgspec.Struct, array_like=True, tag=17):
    """A step's news for one front end. keys, indices and token_ids are columns: one token for sequence indices[i] of
    request keys[i]; if indices is empty, all are 0. others: sequences with more news than one token."""

    time: float
    keys: list[int]
    indices: list[int]
    token_ids: list[int]
    others: list[SequenceNews]


class Refusal(msgspec.Struct, array_like=True, tag=18):
    """A request has ended outside of a step. why: invalid (the user's fault), busy, or aborted."""

    key: int
    why: str
    text: str = ""
    retry_after_s: float = 0.0


class Reply(msgspec.Struct, array_like=True, tag=19):
    """The answer to a question, itself MessagePack."""

    number: int
    answer: bytes


class GivenUp(msgspec.Struct, array_like=True, tag=20):
    """These requests and questions were dropped because the front end did not read."""

    keys: list[int]


class Load(msgspec.Struct, array_like=True, tag=21):
    """To a front end's router. work: of the unfinished requests of all other front ends. prompts: the pieces of those
    that have come since the last Load."""

    work: int
    prompts: list[list[Piece]]


Up = Hello | AddRequest | Abort | AbortById | FinishSequence | Question | HasRead | Adapters
Down = Welcome | StepNews | Refusal | Reply | GivenUp | Load

encode = msgspec.msgpack.Encoder().encode
decode_up = msgspec.msgpack.Decoder(Up).decode
decode_down = msgspec.msgpack.Decoder(Down).decode


#: what a message has of a Request as it is
_SAME = tuple(
    name
    for name in AddRequest.__struct_fields__
    if name in Request.__dataclass_fields__ and name not in ("sampling_params", "trace_headers", "begun_token_ids")
)


def pack_request(
    key: int, request: Request, trace_headers: dict[str, str] | None = None, work: int = 0, pieces: Sequence[Piece] = ()
) -> AddRequest:
    return AddRequest(
        key=key,
        sampling_params=pack_params(request.sampling_params),
        trace_headers=trace_headers,
        fingerprint=fingerprint_of(request),
        work=work,
        pieces=list(pieces),
        begun_token_ids=tuple(request.begun_token_ids),
        **{name: getattr(request, name) for name in _SAME},
    )


def fingerprint_of(request: Request) -> str:
    """A hash of a request's prompt and parameters, in 32 characters."""
    adapter = None if request.lora_request is None else request.lora_request.lora_name
    asked: tuple[Any, ...] = (request.prompt_token_ids, pack_params(request.sampling_params))
    if request.grammar is not None or adapter is not None:
        asked += (request.grammar, adapter)
    return hashlib.blake2b(encode(asked), digest_size=16).hexdigest()


def unpack_request(message: AddRequest) -> Request:
    same = {name: getattr(message, name) for name in _SAME}
    params = SamplingParams(**message.sampling_params)
    return Request(sampling_params=params, begun_token_ids=message.begun_token_ids, **same)


#: parameters that only the front end, which makes the text, reads; grammars and Thoughts are made there, too
_TEXT_ONLY = frozenset(
    {"stop", "detokenize", "skip_special_tokens", "include_stop_str_in_output", "output_kind", "flat_logprobs"}
    | {"structured_outputs", "thinking_token_budget", "stream_interval"}
    | {"logits_processors"}  # refused, where they would have to cross
)
_DEFAULTS = {
    field.name: getattr(SamplingParams(), field.name)
    for field in fields(SamplingParams)
    if field.name not in _TEXT_ONLY
}


def pack_params(params: SamplingParams) -> dict[str, Any]:
    """The fields that differ from the default, without those that concern only text."""
    return {name: value for name, default in _DEFAULTS.items() if (value := getattr(params, name)) != default}


def engine_socket(
    context: zmq.Context[zmq.Socket[bytes]], address: str, *, is_bounded: bool = True
) -> zmq.Socket[bytes]:
    """The engine's end of the socket. is_bounded: so many messages may wait for a front end as MAX_UNREAD says."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a message to a front end that is gone is an error
    socket.setsockopt(zmq.SNDHWM, MAX_UNREAD if is_bounded else 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.bind(address)
    return socket
