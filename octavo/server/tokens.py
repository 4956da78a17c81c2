"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from octavo.engine.tokenizer import Tokenizer
from octavo.server.errors import ApiError
from octavo.server.prompts import Conversation, encode_conversation, encode_text
from octavo.server.protocol import DetokenizeRequest, TokenizeRequest
from octavo.server.responses import DetokenizeResponse, TokenizeResponse
from octavo.server.serving import Serving, json_response

_OF_CONVERSATIONS = (
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
    "documents",
)


async def tokenize(request: Request, serving: Serving) -> Response:
    asked = await serving.read(request, TokenizeRequest)
    tokenizer = serving.tokenizer("tokenize")
    tokens = await _tokens(asked, tokenizer, serving)
    return json_response(
        TokenizeResponse(
            count=len(tokens),
            max_model_len=serving.client.model_info.max_model_len,
            tokens=tokens,
            token_strs=[one or "" for one in tokenizer.convert_ids_to_tokens(tokens)]
            if asked.return_token_strs
            else None,
        )
    )


async def _tokens(asked: TokenizeRequest, tokenizer: Tokenizer, serving: Serving) -> list[int]:
    if (asked.prompt is None) == (asked.messages is None):
        raise ApiError(400, "the request has both or neither of prompt and messages, allowed is one", param="prompt")
    if asked.prompt is None:
        conversation: Conversation = asked  # type: ignore[assignment]  # it has messages
        return await encode_conversation(tokenizer, conversation, serving.settings)
    for name in _OF_CONVERSATIONS:
        if getattr(asked, name) is not None:
            raise ApiError(400, f"{name} is set, but the request has a prompt: it goes with messages", param=name)
    return await encode_text(tokenizer, asked.prompt, asked.add_special_tokens is not False)


async def detokenize(request: Request, serving: Serving) -> Response:
    asked = await serving.read(request, DetokenizeRequest)
    most = serving.client.model_info.vocab_size - 1
    for token_id in asked.tokens:
        if not 0 <= token_id <= most:
            raise ApiError(400, f"tokens holds {token_id}, allowed are 0 to {most}", param="tokens")
    text = serving.tokenizer("detokenize").decode(asked.tokens, skip_special_tokens=False)
    return json_response(DetokenizeResponse(prompt=text))
