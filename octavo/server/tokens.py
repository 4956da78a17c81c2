"""POST /tokenize and /detokenize, and GET /tokenizer_info, in vLLM's shapes."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from octavo.server.answer_bodies import DetokenizeResponse, TokenizeResponse
from octavo.server.api_errors import bad_field
from octavo.server.json_pieces import answer
from octavo.server.prompts import encode_conversation, encode_texts
from octavo.server.protocol import ChatCompletionRequest, DetokenizeRequest, TokenizeRequest
from octavo.server.serving import Serving, json_response
from octavo.server.tools import asked_tools
from octavo.text.tokenizer import Tokenizer

_OF_CONVERSATIONS = (
    *("add_generation_prompt", "continue_final_message"),
    *("chat_template", "chat_template_kwargs", "documents", "tools"),
)


async def tokenize(request: Request, serving: Serving) -> Response:
    """A prompt, or a conversation, to token ids."""
    asked = await serving.read(request, TokenizeRequest)
    tokenizer = serving.tokenizer("tokenize")
    tokens = await _tokens(request, asked, serving)

    def make() -> TokenizeResponse:
        names = [one or "" for one in tokenizer.convert_ids_to_tokens(tokens)] if asked.return_token_strs else None
        max_model_len = serving.client.model_info.max_model_len
        return TokenizeResponse(count=len(tokens), max_model_len=max_model_len, tokens=tokens, token_strs=names)

    return await answer(serving.lanes, len(tokens), make)


async def _tokens(request: Request, asked: TokenizeRequest, serving: Serving) -> list[int]:
    if (asked.prompt is None) == (asked.messages is None):
        raise bad_field("prompt", "and messages are both given or both missing, allowed is one of them")
    template_fields = {name: getattr(asked, name) for name in _OF_CONVERSATIONS}
    if asked.messages is not None:
        special = asked.add_special_tokens
        asked_tools(asked.tools, None, None)  # before a template sees them
        chat = ChatCompletionRequest(messages=asked.messages, add_special_tokens=special, **template_fields)
        return await encode_conversation(request, serving, chat, None)
    assert asked.prompt is not None, "one of the two is given"
    for name, value in template_fields.items():
        if value is not None:
            raise bad_field(name, "is set, but the request has a prompt: it goes with messages")
    adds_special = asked.add_special_tokens is not False
    (tokens,) = await encode_texts(request, serving, [asked.prompt], adds_special, "prompt", None)
    return tokens


async def detokenize(request: Request, serving: Serving) -> Response:
    """Token ids to text."""
    asked = await serving.read(request, DetokenizeRequest)
    tokenizer = serving.tokenizer("detokenize")
    return await answer(serving.lanes, len(asked.tokens), lambda: _text(asked.tokens, tokenizer, serving))


def _text(tokens: list[int], tokenizer: Tokenizer, serving: Serving) -> DetokenizeResponse:
    most = serving.client.model_info.vocab_size - 1
    for token_id in tokens:
        if not 0 <= token_id <= most:
            raise bad_field("tokens", f"holds {token_id}, allowed are 0 to {most}")
    return DetokenizeResponse(prompt=tokenizer.decode(tokens, skip_special_tokens=False))


async def tokenizer_info(request: Request, serving: Serving) -> Response:
    """The tokenizer as a tokenizer_config.json describes it, the chat template included."""
    config = serving.tokenizer("tokenizer_info").config()
    config["model_max_length"] = serving.client.model_info.max_model_len
    return json_response(config)
