"""POST /tokenize and /detokenize, and GET /tokenizer_info, in vLLM's shapes."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.server.api_errors import JSON, ApiError
from octavo.server.prompts import Conversation, encode_conversation, encode_texts
from octavo.server.protocol import DetokenizeRequest, TokenizeRequest
from octavo.server.responses import DetokenizeResponse, TokenizeResponse
from octavo.server.serving import Serving, answer
from octavo.text.tokenizer import Tokenizer

_OF_CONVERSATIONS = (
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
    "documents",
)


async def tokenize(request: Request, serving: Serving) -> Response:
    """A prompt, or a conversation, to token ids."""
    asked = await serving.read(request, TokenizeRequest)
    tokenizer = serving.tokenizer("tokenize")
    tokens = await _tokens(request, asked, serving)

    def make() -> TokenizeResponse:
        return TokenizeResponse(
            count=len(tokens),
            max_model_len=serving.client.model_info.max_model_len,
            tokens=tokens,
            token_strs=_token_strs(tokens, tokenizer) if asked.return_token_strs else None,
        )

    return await answer(serving, len(tokens), make)


def _token_strs(tokens: list[int], tokenizer: Tokenizer) -> list[str]:
    return [one or "" for one in tokenizer.convert_ids_to_tokens(tokens)]


async def _tokens(request: Request, asked: TokenizeRequest, serving: Serving) -> list[int]:
    if (asked.prompt is None) == (asked.messages is None):
        raise ApiError(400, "the request has both or neither of prompt and messages, allowed is one", param="prompt")
    if asked.prompt is None:
        conversation: Conversation = asked  # type: ignore[assignment]  # it has messages
        return await encode_conversation(request, serving, conversation, None)
    for name in _OF_CONVERSATIONS:
        if getattr(asked, name) is not None:
            raise ApiError(400, f"{name} is set, but the request has a prompt: it goes with messages", param=name)
    (tokens,) = await encode_texts(
        request, serving, [asked.prompt], asked.add_special_tokens is not False, "prompt", None
    )
    return tokens


async def detokenize(request: Request, serving: Serving) -> Response:
    """Token ids to text."""
    asked = await serving.read(request, DetokenizeRequest)
    tokenizer = serving.tokenizer("detokenize")
    return await answer(serving, len(asked.tokens), lambda: _text(asked.tokens, tokenizer, serving))


def _text(tokens: list[int], tokenizer: Tokenizer, serving: Serving) -> DetokenizeResponse:
    most = serving.client.model_info.vocab_size - 1
    for token_id in tokens:
        if not 0 <= token_id <= most:
            raise ApiError(400, f"tokens holds {token_id}, allowed are 0 to {most}", param="tokens")
    return DetokenizeResponse(prompt=tokenizer.decode(tokens, skip_special_tokens=False))


async def tokenizer_info(request: Request, serving: Serving) -> Response:
    """The tokenizer as a tokenizer_config.json describes it, the chat template included."""
    told = serving.tokenizer("tokenizer_info").config()
    told["model_max_length"] = serving.client.model_info.max_model_len
    return Response(msgspec.json.encode(told), media_type=JSON)
