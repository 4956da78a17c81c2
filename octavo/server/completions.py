"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from octavo.outputs import CompletionOutput, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.answer_bodies import CompletionChoice, CompletionLogprobs, CompletionResponse, request_times
from octavo.server.api_errors import bad_field
from octavo.server.chunks import CompletionChunks, stream_answer
from octavo.server.generation import recommended_length, sampling_params, stream
from octavo.server.logprob_room import check_num_logprobs
from octavo.server.logprobs import completion_logprobs, prompt_logprobs
from octavo.server.openai_calls import Call, check_pairs, make_call, names_logprob_tokens
from octavo.server.prompts import cut, encode_texts, room_for_output
from octavo.server.protocol import CompletionRequest
from octavo.server.serving import Serving
from octavo.server.session_protocol import SessionGenerateRequest
from octavo.server.streaming import lane_for
from octavo.server.whole_answer import total_usage, whole_answer
from octavo.text.tokenizer import LONG_TEXT

DEFAULT_MAX_TOKENS = 16

Prompts = list[str] | list[list[int]]


async def create_completion(request: Request, serving: Serving) -> Response:
    """Continue one or many prompts."""
    asked = await serving.read(request, CompletionRequest)
    check_pairs(asked)
    given = one_or_many("prompt", asked.prompt, serving.settings.max_prompts_per_request)
    prompts = await _token_ids(request, given, asked, serving)
    most = DEFAULT_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens
    prompts = [cut(prompt, asked, most, serving.client.model_info) for prompt in prompts]
    params = completion_params(asked, prompts, serving)
    num_top = -1 if asked.logprob_token_ids else asked.logprobs
    call = make_call(request, asked, serving, "cmpl", prompts, params, num_top, names_limit=True)
    shown = given if asked.truncate_prompt_tokens is None else prompts
    echo = await _as_texts(shown, asked, serving) if asked.echo else None
    if asked.stream:
        outputs = stream(serving.client, call.generation)
        if asked.max_tokens == 0:
            outputs = _prompts_alone(outputs)
        return stream_answer(serving, call, CompletionChunks(call, echo), outputs)
    echoed = "".join(echo or ())
    return await whole_answer(request, serving, call, lambda outputs: _response(call, asked, outputs, echo), echoed)


async def _prompts_alone(outputs: AsyncGenerator[RequestOutput]) -> AsyncGenerator[RequestOutput]:
    async with aclosing(outputs):
        async for output in outputs:
            yield _prompt_alone(output)


def _prompt_alone(output: RequestOutput) -> RequestOutput:
    """The output without the engine's one token, for a request with max_tokens 0."""
    for one in output.outputs:
        one.text, one.token_ids, one.stop_reason = "", [], None
        one.logprobs = None if one.logprobs is None else []
        one.finish_reason = "length" if one.finish_reason == "stop" else one.finish_reason
    return output


def one_or_many(name: str, prompt: str | list[str | int | list[int]], most: int) -> Prompts:
    """One or many, texts or token ids, never mixed. name: the field that has them."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise bad_field(name, "is [], allowed are a text, token ids, or a list of either")
    kinds = set(map(type, prompt))  # there may be a million
    if len(kinds) > 1:
        raise bad_field(name, "mixes texts, numbers and lists, allowed are lists of one kind")
    if kinds == {int}:
        return [prompt]  # type: ignore[return-value]
    if len(prompt) > most:
        problem = (
            f"holds {len(prompt)} prompts, allowed are {most}: send several requests, or start the server with a "
            "larger --max-prompts-per-request"
        )
        raise bad_field(name, problem)
    return prompt  # type: ignore[return-value]


async def _token_ids(request: Request, given: Prompts, asked: CompletionRequest, serving: Serving) -> list[list[int]]:
    if not isinstance(given[0], str):
        return given  # they are of one kind
    fits = serving.client.model_info if asked.truncate_prompt_tokens is None else None
    return await encode_texts(request, serving, given, asked.add_special_tokens is not False, "prompt", fits)


def completion_params(
    asked: CompletionRequest | SessionGenerateRequest, prompts: list[list[int]], serving: Serving
) -> SamplingParams:
    """max_tokens 0 with echo only reads the prompt; the engine generates one token, which is not reported."""
    if asked.max_tokens == 0 and not asked.echo:
        raise bad_field("max_tokens", "is 0, allowed is 1 or more, or 0 together with echo")
    names_tokens = names_logprob_tokens(asked, asked.logprobs is not None)
    if names_tokens and asked.max_tokens == 0:
        problem = "is set and max_tokens is 0, allowed is one of them: they come with generated tokens"
        raise bad_field("logprob_token_ids", problem)
    info = serving.client.model_info
    wanted = max(asked.max_tokens, 1) if asked.max_tokens is not None and asked.max_tokens >= 0 else asked.max_tokens
    rooms = [room_for_output(len(prompt), wanted, info, ("prompt", "max_tokens")) for prompt in prompts]
    check_num_logprobs(info, logprobs=asked.logprobs, prompt_logprobs=asked.prompt_logprobs)
    has_prompt_logprobs = asked.echo and asked.logprobs is not None
    if has_prompt_logprobs and asked.prompt_logprobs not in (None, asked.logprobs):
        problem = f"is {asked.prompt_logprobs}, logprobs is {asked.logprobs}: with echo both are one"
        raise bad_field("prompt_logprobs", problem)
    default = min(DEFAULT_MAX_TOKENS, recommended_length(info))
    return sampling_params(
        asked,
        serving,
        max_tokens=min(default if wanted is None else wanted, max(rooms)),
        logprobs=None if names_tokens else asked.logprobs,
        prompt_logprobs=asked.logprobs if has_prompt_logprobs else asked.prompt_logprobs,
    )


async def _as_texts(given: Prompts, asked: CompletionRequest, serving: Serving) -> list[str]:
    """The prompts' text, special tokens included, which echoed answers begin with. Empty without a tokenizer: then the
    answers have the ids."""
    if isinstance(given[0], str):
        return given  # they are of one kind
    tokenizer = serving.client.get_tokenizer()
    if tokenizer is None:
        return [""] * len(given)
    read = (
        tokenizer.decode if asked.max_tokens == 0 else tokenizer.settled_text
    )  # the answer has the rest of a cut character

    def decode() -> list[str]:
        return [read(one, False) for one in given]

    size = sum(map(len, given))
    return decode() if size <= LONG_TEXT else await serving.lanes.run(lane_for(size), decode)


def _response(
    call: Call, asked: CompletionRequest, outputs: list[RequestOutput], echo: list[str] | None
) -> CompletionResponse:
    if asked.max_tokens == 0:
        outputs = list(map(_prompt_alone, outputs))
    echoes = [None] * len(outputs) if echo is None else echo
    choices = [
        completion_choice(call, asked, place * call.params.n + one.index, output, one, echoes[place])
        for place, output in enumerate(outputs)
        for one in output.outputs
    ]
    return completion_response(call, choices, outputs)


def completion_response(
    call: Call, choices: list[CompletionChoice], outputs: list[RequestOutput]
) -> CompletionResponse:
    counts = total_usage(outputs)
    return CompletionResponse(
        id=call.id,
        created=call.created,
        model=call.model,
        choices=choices,
        usage=counts,
        metrics=request_times(outputs[0], counts.completion_tokens) if call.has_metrics else None,
    )


def completion_choice(
    call: Call,
    asked: CompletionRequest | SessionGenerateRequest,
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
    answer = completion_logprobs(call, completion.token_ids, completion.logprobs or (), place)
    if echo is None:
        return answer
    prompt = completion_logprobs(call, ids, output.prompt_logprobs or [], call.echo_place(ids, echo))
    return CompletionLogprobs(
        text_offset=prompt.text_offset + answer.text_offset,
        token_logprobs=prompt.token_logprobs + answer.token_logprobs,
        tokens=prompt.tokens + answer.tokens,
        top_logprobs=prompt.top_logprobs + answer.top_logprobs,
    )
