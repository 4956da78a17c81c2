"""POST /api/chat and /api/generate, for Ollama's clients: the same engine under other names.

    {"model": "smollm2", "created_at": "...", "message": {"role": "assistant", "content": " word"}, "done": false}
    ...
    {"model": "smollm2", ..., "done": true, "done_reason": "stop", "eval_count": 12, "eval_duration": 48000000, ...}

One JSON object per line, or one in all with "stream": false.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.request import ModelInfo
from octavo.sampling_params import SamplingParams, defaults_for, known_to
from octavo.server.api_errors import JSON, ApiError, bad_field
from octavo.server.chat import encode_chat, reading_of
from octavo.server.generation import Generation, checked_params, complete, from_headers, recommended_length, stream
from octavo.server.ollama_conversation import conversation_of, in_its_words
from octavo.server.ollama_lines import OllamaLines, message_of, timestamp
from octavo.server.ollama_protocol import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaOptions,
    OllamaRequest,
    check_supported,
)
from octavo.server.prompts import encode_texts, room_for_output
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.reading import Reading
from octavo.server.serving import Serving, request_id
from octavo.server.streaming import CLIENT_CLOSED_REQUEST, EventStream, cancelled_on_disconnect
from octavo.shown import shown

LINES = "application/x-ndjson"

_encode = msgspec.json.Encoder().encode

T = TypeVar("T", bound=OllamaRequest)


async def chat(request: Request, serving: Serving) -> Response:
    """Answer a conversation, for Ollama's clients."""
    asked = await _read(request, serving, OllamaChatRequest)
    if not asked.messages:
        return _loaded(asked, {"message": message_of("")})
    conversation = conversation_of(asked, serving, asked.messages, asked.tools)
    prompt, reading = await _conversation_prompt(request, serving, conversation)
    return await _answer(request, serving, asked, prompt, reading, "messages")


async def generate(request: Request, serving: Serving) -> Response:
    """Answer a prompt, for Ollama's clients; with raw: continue it."""
    asked = await _read(request, serving, OllamaGenerateRequest)
    if not asked.prompt:
        return _loaded(asked, {"response": ""})
    prompt, reading = await _prompt(request, asked, asked.prompt, serving)
    return await _answer(request, serving, asked, prompt, reading, "prompt")


async def _read(request: Request, serving: Serving, kind: type[T]) -> T:
    asked = await serving.read_body(request, kind)
    await model_of(asked.model, serving)
    check_supported(asked)
    return asked


async def model_of(asked: str | None, serving: Serving) -> str:
    """The served name, or the adapter, that a client means. Raises ApiError."""
    name = (asked or "").removesuffix(":latest")
    is_served = any(asked in (one, f"{one}:latest") for one in serving.settings.served_model_name)
    if is_served or await serving.adapters.find(name) is None:
        return served_name(asked, serving)
    return name


def served_name(asked: str | None, serving: Serving) -> str:
    """The served name that a client means, with or without `:latest`. Raises ApiError."""
    names = serving.settings.served_model_name
    for name in names:
        if asked in (name, f"{name}:latest"):
            return name
    known = " or ".join(map(repr, names))
    raise ApiError(404, f"model {shown(asked or '')} not found, served is {known}", code="model_not_found")


async def _conversation_prompt(
    request: Request, serving: Serving, conversation: ChatCompletionRequest
) -> tuple[list[int], Reading | None]:
    """The prompt, and how the answer is read."""
    try:
        prompt = await encode_chat(request, conversation, serving)
        return prompt, reading_of(conversation, prompt, serving)
    except ApiError as error:
        raise in_its_words(error) from None


async def _prompt(
    request: Request, asked: OllamaGenerateRequest, text: str, serving: Serving
) -> tuple[list[int], Reading | None]:
    """The text as a user's message in the model's chat template, if it has one."""
    tokenizer, info = serving.tokenizer("a prompt in text"), serving.client.model_info
    if asked.raw or tokenizer.chat_template is None:
        if asked.system:
            why = "raw is true" if asked.raw else "the model has no chat template"
            raise bad_field("system", f"is given, but {why}, so it has no place: write it into the prompt")
        if asked.think:
            why = "raw is true" if asked.raw else "the model has no chat template"
            raise bad_field("think", f"is {shown(asked.think)}, but {why}: leave it out")
        (prompt,) = await encode_texts(request, serving, [text], True, "prompt", info)
        return prompt, None
    messages = [{"role": "system", "content": asked.system}] if asked.system else []
    conversation = conversation_of(asked, serving, [*messages, {"role": "user", "content": text}])
    return await _conversation_prompt(request, serving, conversation)


async def _answer(
    request: Request,
    serving: Serving,
    asked: OllamaRequest,
    prompt: list[int],
    reading: Reading | None,
    field: str,
) -> Response:
    known_as = request_id(request, None)
    generation = Generation(
        request_id=f"ollama-{known_as}",
        prompts=[prompt],
        params=serving.answers.params(_params(asked, len(prompt), serving, field), reading),
        lora_request=serving.adapter(await model_of(asked.model, serving)),
        **from_headers(request),
    )
    lines = OllamaLines(asked.model or "", is_chat=field == "messages", reading=reading)
    headers = serving.id_headers(known_as)
    if asked.stream is not False:
        headers["content-type"] = LINES  # these have no comments, so none keeps the stream alive
        return EventStream(stream(serving.client, generation), lines, headers, 0, serving.lanes)
    async with cancelled_on_disconnect(request.receive):
        (output,) = await complete(serving.client, generation)
        return Response(lines.whole(output), headers=headers, media_type=JSON)
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _params(asked: OllamaRequest, num_prompt: int, serving: Serving, field: str) -> SamplingParams:
    info, options = serving.client.model_info, asked.options or OllamaOptions()
    form = _form(asked.format)
    most = options.num_predict
    if (most is not None and most < -2) or most == 0:
        raise bad_field("options.num_predict", f"is {most}, allowed is 1 or more, and -1 for what the context leaves")
    wanted = recommended_length(info) if most is None else most
    room = room_for_output(num_prompt, None, info, (field, "num_predict"))
    given = {ours: getattr(options, theirs) for theirs, ours in known_to("ollama").items()}
    if options.repeat_last_n == 0:
        given["repetition_penalty"] = 1.0
    try:
        limit = room if wanted < 0 else min(wanted, room)
        return checked_params(
            _with_ollamas_defaults(info), serving.settings, max_tokens=limit, structured_outputs=form, **given
        )
    except ApiError as error:
        named, _, problem = error.message.partition(" ")
        if named.startswith("structured_outputs"):
            raise bad_field("format", f"cannot be followed: {error.message}") from None
        named = next((theirs for theirs, ours in known_to("ollama").items() if ours == named), named)
        error.message = f"options.{named} {problem}"
        raise


def _form(asked: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """The structured_outputs of a format."""
    if asked is None or asked == "":
        return None
    if isinstance(asked, dict):
        return {"json": asked}
    if asked != "json":
        raise bad_field("format", f"is {shown(asked)}, allowed are 'json' and a JSON schema")
    return {"json_object": True}


def _with_ollamas_defaults(info: ModelInfo) -> SamplingParams:
    """Ollama's, where the model's makers recommend nothing."""
    neutral, recommended = SamplingParams(), info.default_sampling_params
    unset = [name for name in defaults_for("ollama") if getattr(recommended, name) == getattr(neutral, name)]
    return recommended.replace(**{name: defaults_for("ollama")[name] for name in unset})


def _loaded(asked: OllamaRequest, answer: dict[str, Any]) -> Response:
    """The answer to a call that only loads the model."""
    body = {"model": asked.model, "created_at": timestamp(), **answer, "done": True, "done_reason": "load"}
    is_stream = asked.stream is not False
    return Response(_encode(body) + (b"\n" if is_stream else b""), media_type=LINES if is_stream else JSON)
