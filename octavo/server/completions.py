"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from octavo.outputs import CompletionOutput, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.api_errors import ApiError
from octavo.server.chunks import CompletionChunks, OpenAIEvents
from octavo.server.generation import complete, stream
from octavo.server.logprobs import completion_logprobs, prompt_logprobs
from octavo.server.openai_calls import (
    Call,
    answer_size,
    check_logprob_token_ids,
    check_num_logprobs,
    check_pairs,
    make_call,
    total_usage,
)
from octavo.server.prompts import cut, encode_texts, room_for_output
from octavo.server.protocol import CompletionRequest
from octavo.server.responses import CompletionChoice, CompletionLogprobs, CompletionResponse, request_times
from octavo.server.room import lane_for
from octavo.server.sampling import sampling_params
from octavo.server.serving import Serving, answer
from octavo.server.streaming import CLIENT_CLOSED_REQUEST, cancelled_on_disconnect
from octavo.text.tokenizer import LONG_TEXT

DEFAULT_MAX_TOKENS = 16

Prompts = list[str] | list[list[int]]


async def create_completion(request: Request, serving: Serving) -> Response:
    """Continue one or many prompts."""
    asked = await serving.read(request, CompletionRequest)
    check_pairs(asked)
    given = _prompts(asked.prompt, serving.settings.max_prompts_per_request)
    prompts = await _token_ids(request, given, asked, serving)
    most = DEFAULT_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens
    prompts = [cut(prompt, asked, most, serving.client.model_info) for prompt in prompts]
    params = _params(asked, prompts, serving)
    call = make_call(
        request,
        asked,
        serving,
        kind="cmpl",
        prompts=prompts,
        params=params,
        num_top=-1 if asked.logprob_token_ids else asked.logprobs,
        names_limit=True,
    )
    shown = given if asked.truncate_prompt_tokens is None else prompts
    echo = await _as_texts(shown, asked, serving) if asked.echo else None
    headers, room = serving.id_headers(call.known_as), serving.logprob_room
    if asked.stream:
        outputs = room.held(call.num_logprobs, stream(serving.client, call.generation))
        if asked.max_tokens == 0:
            outputs = _prompts_alone(outputs)
        return serving.event_stream(outputs, OpenAIEvents(call, CompletionChunks(call, echo)), headers)
    async with cancelled_on_disconnect(request.receive):
        with await room.take(call.num_logprobs) as share:
            finished = await complete(serving.client, call.generation)
            if asked.max_tokens == 0:
                finished = [_prompt_alone(output) for output in finished]
            size = answer_size(call, finished, "".join(echo or ()))
            made = await answer(serving, size, lambda: _response(call, asked, finished, echo), headers)
            return share.until_sent(made)
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _prompts_alone(outputs: AsyncGenerator[RequestOutput]) -> AsyncGenerator[RequestOutput]:
    async with aclosing(outputs):
        async for output in outputs:
            yield _prompt_alone(output)


def _prompt_alone(output: RequestOutput) -> RequestOutput:
    """Without the token that the engine made, for a request that asked for none."""
    for one in output.outputs:
        one.text, one.token_ids, one.stop_reason = "", [], None
        one.logprobs = None if one.logprobs is None else []
        one.finish_reason = "length" if one.finish_reason == "stop" else one.finish_reason
    return output


def _prompts(prompt: str | list[str | int | list[int]], most: int) -> Prompts:
    """One or many, texts or token ids, never mixed."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise ApiError(400, "prompt is [], allowed are a text, token ids, or a list of either", param="prompt")
    kinds = set(map(type, prompt))  # there may be a million
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


async def _token_ids(request: Request, given: Prompts, asked: CompletionRequest, serving: Serving) -> list[list[int]]:
    if not isinstance(given[0], str):
        return given  # they are of one kind
    fits = serving.client.model_info if asked.truncate_prompt_tokens is None else None
    return await encode_texts(request, serving, given, asked.add_special_tokens is not False, "prompt", fits)


def _params(asked: CompletionRequest, prompts: list[list[int]], serving: Serving) -> SamplingParams:
    """max_tokens 0 with echo only reads the prompt; the engine makes one token, which is not told."""
    if asked.max_tokens == 0 and not asked.echo:
        raise ApiError(400, "max_tokens is 0, allowed is 1 or more, or 0 together with echo", param="max_tokens")
    if check_logprob_token_ids(asked, asked.logprobs is not None) and asked.max_tokens == 0:
        raise ApiError(
            400,
            "logprob_token_ids is set and max_tokens is 0, allowed is one of them: they come with generated tokens",
            param="logprob_token_ids",
        )
    info = serving.client.model_info
    wanted = max(asked.max_tokens, 1) if asked.max_tokens is not None and asked.max_tokens >= 0 else asked.max_tokens
    rooms = [room_for_output(len(prompt), wanted, info, ("prompt", "max_tokens")) for prompt in prompts]
    check_num_logprobs(info, logprobs=asked.logprobs, prompt_logprobs=asked.prompt_logprobs)
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
        max_tokens=min(DEFAULT_MAX_TOKENS if wanted is None else wanted, max(rooms)),
        logprobs=None if asked.logprob_token_ids else asked.logprobs,
        prompt_logprobs=asked.logprobs if has_prompt_logprobs else asked.prompt_logprobs,
    )


async def _as_texts(given: Prompts, asked: CompletionRequest, serving: Serving) -> list[str]:
    """What answers that echo begin with: all tokens of the prompts as text; nothing without a tokenizer, where the
    answers have their ids."""
    if isinstance(given[0], str):
        return given  # they are of one kind
    tokenizer = serving.client.get_tokenizer()
    if tokenizer is None:
        return [""] * len(given)
    read = tokenizer.decode if asked.max_tokens == 0 else tokenizer.settled_text  # a character's end is the answer's

    def decode() -> list[str]:
        return [read(one, False) for one in given]

    size = sum(map(len, given))
    return decode() if size <= LONG_TEXT else await serving.lanes.run(lane_for(size), decode)


def _response(
    call: Call, asked: CompletionRequest, outputs: list[RequestOutput], echo: list[str] | None
) -> CompletionResponse:
    choices = [
        _choice(call, asked, place * call.params.n + one.index, output, one, None if echo is None else echo[place])
        for place, output in enumerate(outputs)
        for one in output.outputs
    ]
    counts = total_usage(outputs)
    return CompletionResponse(
        id=call.id,
        created=call.created,
        model=call.model,
        choices=choices,
        usage=counts,
        metrics=request_times(outputs[0], counts.completion_tokens) if call.has_metrics else None,
    )


def _choice(
    call: Call,
    asked: CompletionRequest,
    index: int,
    output: RequestOutput,
    completion: CompletionOutput,
    echo: str | None,
) -> CompletionChoice:
    return CompletionChoice(
        index=index,
        text=(echo or "") + completion.text,
        logprobs=_logprobs(call, output, completion, echo),
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        prompt_logprobs=None if asked.prompt_logprobs is None else prompt_logprobs(output.prompt_logprobs or []),
        prompt_token_ids=output.prompt_token_ids if call.has_token_ids else None,
        token_ids=completion.token_ids if call.has_token_ids else None,
    )


def _logprobs(
    call: Call, output: RequestOutput, completion: CompletionOutput, echo: str | None
) -> CompletionLogprobs | None:
    if call.num_top is None:
        return None
    ids = output.prompt_token_ids
    place = call.answer_place(ids, echo)
    told = completion_logprobs(call, completion.token_ids, completion.logprobs or (), place)
    if echo is None:
        return told
    prompt = completion_logprobs(call, ids, output.prompt_logprobs or [], call.echo_place(ids, echo))
    return CompletionLogprobs(
        text_offset=prompt.text_offset + told.text_offset,
        token_logprobs=prompt.token_logprobs + told.token_logprobs,
        tokens=prompt.tokens + told.tokens,
        top_logprobs=prompt.top_logprobs + told.top_logprobs,
    )
