"""POST /v1/chat/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from octavo.outputs import CompletionOutput, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.answer_bodies import ChatChoice, ChatCompletionResponse, ChatLogprobs, ChatMessage, request_times
from octavo.server.api_errors import ApiError, bad_field
from octavo.server.chunks import ChatChunks, stream_answer
from octavo.server.generation import recommended_length, sampling_params, stream
from octavo.server.json_pieces import LazyList
from octavo.server.logprob_room import check_num_logprobs
from octavo.server.logprobs import chat_logprobs, prompt_logprobs
from octavo.server.openai_calls import Call, check_pairs, make_call, names_logprob_tokens
from octavo.server.prompts import cut, encode_conversation, room_for_output
from octavo.server.protocol import ChatCompletionRequest, ConversationRequest
from octavo.server.reading import Reading
from octavo.server.serving import Serving
from octavo.server.tools import asked_tools
from octavo.server.whole_answer import total_usage, whole_answer
from octavo.text.answers.parser import Answer, num_thoughts


async def create_chat_completion(request: Request, serving: Serving) -> Response:
    """Answer a conversation."""
    asked = await serving.read(request, ChatCompletionRequest)
    check_pairs(asked)
    num_top = number_of_alternatives(asked)
    prompt = await encode_chat(request, asked, serving)
    reading = reading_of(asked, prompt, serving)
    params = serving.answers.params(chat_params(asked, prompt, num_top, serving), reading)
    limited = names_limit(asked)
    call = make_call(request, asked, serving, "chatcmpl", [prompt], params, num_top, names_limit=limited)
    echo = continued_text(asked) if asked.echo else ""
    if asked.stream:
        return stream_answer(serving, call, ChatChunks(call, echo, reading), stream(serving.client, call.generation))
    return await whole_answer(
        request, serving, call, lambda outputs: _response(call, asked, outputs[0], echo, reading), echo
    )


def names_limit(asked: ConversationRequest) -> bool:
    return asked.max_tokens is not None or asked.max_completion_tokens is not None


def reading_of(asked: ChatCompletionRequest, prompt: list[int], serving: Serving) -> Reading | None:
    return serving.answers.reading(asked, prompt, continued_text(asked) if asked.continue_final_message else None)


async def encode_chat(request: Request, asked: ChatCompletionRequest, serving: Serving) -> list[int]:
    asked_tools(asked.tools, asked.tool_choice, asked.parallel_tool_calls)  # before a template sees them
    fits = serving.client.model_info if asked.truncate_prompt_tokens is None else None
    prompt = await encode_conversation(request, serving, asked, fits)
    return cut(prompt, asked, _wanted(asked)[1], serving.client.model_info)


def number_of_alternatives(asked: ChatCompletionRequest) -> int | None:
    """Alternatives to report per token; -1 for all that the engine returns; None for no logprobs."""
    if asked.top_logprobs and not asked.logprobs:  # 0 asks for none
        problem = "and logprobs is not true, allowed is both or neither: set logprobs to true"
        raise bad_field("top_logprobs", f"is {asked.top_logprobs} {problem}")
    if names_logprob_tokens(asked, bool(asked.logprobs)):
        return -1
    return (asked.top_logprobs or 0) if asked.logprobs else None


def chat_params(
    asked: ChatCompletionRequest, prompt: list[int], num_top: int | None, serving: Serving
) -> SamplingParams:
    """The answer is limited to what the context leaves, even if more is requested."""
    name, wanted = _wanted(asked)
    info = serving.client.model_info
    room = room_for_output(len(prompt), wanted, info, ("messages", name))
    if asked.top_logprobs is not None or asked.prompt_logprobs is not None:
        check_num_logprobs(info, top_logprobs=asked.top_logprobs, prompt_logprobs=asked.prompt_logprobs)
    try:
        return sampling_params(
            asked,
            serving,
            max_tokens=min(room, recommended_length(info) if wanted is None else wanted),
            logprobs=None if asked.logprob_token_ids else num_top,
            prompt_logprobs=asked.prompt_logprobs,
        )
    except ApiError as error:  # the engine's names are not always the request's
        error.param = name if error.param == "max_tokens" else error.param
        raise


def _wanted(asked: ChatCompletionRequest) -> tuple[str, int | None]:
    """-> the name of the field that limits the answer, and the limit."""
    old, new = asked.max_tokens, asked.max_completion_tokens
    if new is None:
        return "max_tokens", old
    if old not in (None, new):
        raise ApiError(
            400,
            f"max_tokens is {old} and max_completion_tokens is {new}, which are two names of one limit: send one of "
            "them",
            param="max_completion_tokens",
        )
    return "max_completion_tokens", new


def continued_text(asked: ChatCompletionRequest) -> str:
    """The last message's text, if the answer continues it."""
    last = asked.messages[-1]
    if last.get("role") != "assistant":
        return ""
    content = last.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part if isinstance(part, str) else part["text"] for part in content)


def _response(
    call: Call, asked: ChatCompletionRequest, output: RequestOutput, echo: str, reading: Reading | None
) -> ChatCompletionResponse:
    answers = [read_answer(reading, one) for one in output.outputs]
    counts = total_usage([output], num_thoughts(answers))
    return ChatCompletionResponse(
        id=call.id,
        created=call.created,
        model=call.model,
        choices=[choice(call, one, echo, reading, read) for one, read in zip(output.outputs, answers, strict=True)],
        usage=counts,
        prompt_logprobs=None if asked.prompt_logprobs is None else prompt_logprobs(output.prompt_logprobs or []),
        prompt_token_ids=output.prompt_token_ids if call.has_token_ids else None,
        metrics=request_times(output, counts.completion_tokens) if call.has_metrics else None,
    )


def read_answer(reading: Reading | None, completion: CompletionOutput) -> Answer | None:
    """None: all of its text is content."""
    return None if reading is None else reading.read(completion.text, completion.token_ids)


def choice(
    call: Call, completion: CompletionOutput, echo: str, reading: Reading | None, answer: Answer | None
) -> ChatChoice:
    message = ChatMessage(content=echo + completion.text)
    if reading is not None and answer is not None:
        message = reading.message(answer)
        if echo:
            message.content = echo + (message.content or "")
    has_calls = answer is not None and bool(answer.calls) and completion.finish_reason == "stop"
    logprobs = None
    if call.num_top is not None:
        rows = LazyList(chat_logprobs(call, completion.token_ids, completion.logprobs or []))
        logprobs = ChatLogprobs(content=rows)  # type: ignore[arg-type]  # a list in JSON
    return ChatChoice(
        index=completion.index,
        message=message,
        logprobs=logprobs,
        finish_reason="tool_calls" if has_calls else completion.finish_reason,
        stop_reason=completion.stop_reason,
        token_ids=completion.token_ids if call.has_token_ids else None,
    )
