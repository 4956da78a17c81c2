"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from octavo.outputs import CompletionOutput, RequestOutput, TokenLogprobs
from octavo.sampling_params import SamplingParams
from octavo.server.chunks import CompletionChunks, OpenAIEvents
from octavo.server.errors import ApiError
from octavo.server.generation import complete, stream
from octavo.server.logprobs import completion_logprobs, prompt_logprobs
from octavo.server.openai_calls import Call, check_pairs, id_headers, make_call, total_usage
from octavo.server.prompts import encode_text, room_for_output
from octavo.server.protocol import CompletionRequest
from octavo.server.responses import CompletionChoice, CompletionLogprobs, CompletionResponse
from octavo.server.sampling import sampling_params
from octavo.server.serving import Serving, json_response
from octavo.server.streaming import CLIENT_CLOSED_REQUEST, cancelled_on_disconnect

DEFAULT_MAX_TOKENS = 16

Prompts = list[str] | list[list[int]]


async def create_completion(request: Request, serving: Serving) -> Response:
    asked = await serving.read(request, CompletionRequest)
    check_pairs(asked)
    given = _prompts(asked.prompt, serving.settings.max_prompts_per_request)
    prompts = [await _token_ids(one, asked, serving) for one in given]
    params = _params(asked, prompts, serving)
    call = make_call(request, asked, serving, kind="cmpl", prompts=prompts, params=params, num_top=asked.logprobs)
    echo = [_as_text(one, asked, serving) for one in given] if asked.echo else None
    if asked.stream:
        if asked.max_tokens == 0:
            raise ApiError(400, "max_tokens is 0, allowed with stream is 1 or more", param="max_tokens")
        events = OpenAIEvents(call, CompletionChunks(call, echo))
        return serving.event_stream(stream(serving.client, call.generation), events, id_headers(serving, call.id))
    async with cancelled_on_disconnect(request.receive):
        outputs = await complete(serving.client, call.generation)
        return json_response(_response(call, asked, outputs, echo), id_headers(serving, call.id))
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _prompts(prompt: str | list[str | int | list[int]], most: int) -> Prompts:
    """One or many, texts or token ids, never mixed."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise ApiError(400, "prompt is [], allowed are a text, token ids, or a list of either", param="prompt")
    kinds = {type(one) for one in prompt}
    if len(kinds) > 1:
        raise ApiError(400, "prompt mixes texts, numbers and lists, allowed are lists of one kind", param="prompt")
    if kinds == {int}:
        return [prompt]  # type: ignore[return-value]
    if len(prompt) > most:
        raise ApiError(
            400,
            f"prompt holds {len(prompt)} prompts, allowed are {most}: send several requests, or start the server with "
            "a larger --max-prompts-per-request",
            param="prompt",
        )
    return prompt  # type: ignore[return-value]


async def _token_ids(prompt: str | list[int], asked: CompletionRequest, serving: Serving) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    tokenizer = serving.tokenizer("a prompt in text")
    return await encode_text(tokenizer, prompt, asked.add_special_tokens is not False)


def _params(asked: CompletionRequest, prompts: list[list[int]], serving: Serving) -> SamplingParams:
    """max_tokens 0 with echo only reads the prompt; the engine makes one token, which is not told."""
    if asked.max_tokens == 0 and not asked.echo:
        raise ApiError(400, "max_tokens is 0, allowed is 1 or more, or 0 together with echo", param="max_tokens")
    if asked.echo and asked.truncate_prompt_tokens is not None:
        raise ApiError(
            400, "echo and truncate_prompt_tokens are both set, allowed is one: a cut prompt has no text", param="echo"
        )
    info = serving.client.model_info
    wanted = max(asked.max_tokens, 1) if asked.max_tokens is not None and asked.max_tokens >= 0 else asked.max_tokens
    rooms = [
        room_for_output(len(prompt), wanted, asked.truncate_prompt_tokens, info, ("prompt", "max_tokens"))
        for prompt in prompts
    ]
    has_prompt_logprobs = asked.echo and asked.logprobs is not None
    if has_prompt_logprobs and asked.prompt_logprobs not in (None, asked.logprobs):
        raise ApiError(
            400,
            f"prompt_logprobs is {asked.prompt_logprobs}, logprobs is {asked.logprobs}: with echo both are one",
            param="prompt_logprobs",
        )
    return sampling_params(
        asked,
        info.default_sampling_params,
        serving.settings,
        max_tokens=min(DEFAULT_MAX_TOKENS, *rooms) if wanted is None else wanted,
        logprobs=asked.logprobs,
        prompt_logprobs=asked.logprobs if has_prompt_logprobs else asked.prompt_logprobs,
    )


def _as_text(prompt: str | list[int], asked: CompletionRequest, serving: Serving) -> str:
    if isinstance(prompt, str):
        return prompt
    tokenizer = serving.tokenizer("echo of token ids")
    return tokenizer.decode(prompt, skip_special_tokens=asked.skip_special_tokens is not False)


def _response(
    call: Call, asked: CompletionRequest, outputs: list[RequestOutput], echo: list[str] | None
) -> CompletionResponse:
    choices = [
        _choice(call, asked, place * call.params.n + one.index, output, one, None if echo is None else echo[place])
        for place, output in enumerate(outputs)
        for one in output.outputs
    ]
    return CompletionResponse(
        id=call.id,
        created=call.created,
        model=call.model,
        choices=choices,
        usage=total_usage(outputs, 0 if asked.max_tokens == 0 else None),
    )


def _choice(
    call: Call,
    asked: CompletionRequest,
    index: int,
    output: RequestOutput,
    completion: CompletionOutput,
    echo: str | None,
) -> CompletionChoice:
    is_prompt_only = asked.max_tokens == 0
    token_ids = [] if is_prompt_only else completion.token_ids
    text = "" if is_prompt_only else completion.text
    return CompletionChoice(
        index=index,
        text=(echo or "") + text,
        logprobs=_logprobs(call, output, token_ids, completion.logprobs, has_prompt=echo is not None),
        finish_reason="length" if is_prompt_only else completion.finish_reason,
        stop_reason=None if is_prompt_only else completion.stop_reason,
        prompt_logprobs=UNSET if asked.prompt_logprobs is None else prompt_logprobs(output.prompt_logprobs or []),
        prompt_token_ids=output.prompt_token_ids if call.has_token_ids else UNSET,
        token_ids=token_ids if call.has_token_ids else UNSET,
    )


def _logprobs(
    call: Call,
    output: RequestOutput,
    token_ids: list[int],
    rows: Sequence[TokenLogprobs] | None,
    *,
    has_prompt: bool,
) -> CompletionLogprobs | None:
    if call.num_top is None:
        return None
    all_ids, all_rows = list(token_ids), list[TokenLogprobs | None]((rows or [])[: len(token_ids)])
    if has_prompt:
        all_ids = output.prompt_token_ids + all_ids
        all_rows = [*(output.prompt_logprobs or []), *all_rows]
    return completion_logprobs(call, all_ids, all_rows, 0)[0]
