"""What each field of a request means, in a sentence: /docs and /openapi.json tell it.

A sampling parameter's declaration says it, unless it means something else in a request. A name means the same wherever
it stands, but for those that are told with their struct in front. A test holds this list against the structs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from octavo.sampling_params import SamplingParams, known_to

MEANINGS: Mapping[str, str] = {
    # every call
    "model": "Any name that the model is served by; left out: the first of them.",
    # prompts and conversations
    "prompt": "A text, a list of texts, token ids, or a list of token-id lists.",
    "messages": "The conversation, oldest first. Keys beside role and content go to the chat template.",
    "BatchChatCompletionRequest.messages": "A list of conversations, each as one call would bring it.",
    "system": "What the model is told before the conversation.",
    "role": "user or assistant.",
    "content": "A text, or a list of text blocks.",
    "add_special_tokens": "Put the tokens around the text that the model wants there; chat templates write their own.",
    "add_generation_prompt": "End the prompt where the assistant begins.",
    "continue_final_message": "End the prompt inside the last message, which the answer continues.",
    "chat_template": "Another chat template; refused unless the server trusts those of requests.",
    "chat_template_kwargs": "Variables for the chat template.",
    "documents": "Texts that the chat template may show to the model.",
    "truncate_prompt_tokens": "Keep only so many tokens of the prompt; -1: as many as leave room for max_tokens.",
    "truncation_side": "Where the prompt is cut: left keeps its end, right its beginning.",
    "echo": "Begin the answer with the prompt, in a chat with the message that it continues.",
    # when an answer ends
    "max_completion_tokens": "Another name of max_tokens.",
    "stop_sequences": "Texts that end an answer.",
    # what is told
    "logprobs": "So many alternatives with each token's log-probability; -1: all, where the server allows it.",
    "ConversationRequest.logprobs": "Tell each token's log-probability.",
    "top_logprobs": "So many tokens with each log-probability, the token itself counted and first; -1: all.",
    "prompt_logprobs": "The same for the prompt's tokens; not in a stream.",
    "logprob_token_ids": "Tokens to tell the log-probabilities of, in place of the likeliest; with logprobs.",
    "return_token_ids": "Tell the ids of the answer's tokens and of the prompt's.",
    "return_tokens_as_token_ids": "Write tokens in logprobs as token_id:7.",
    "return_token_strs": "Tell each token as the vocabulary writes it.",
    "tokens": "Token ids.",
    # streams
    "stream": "Send the answer while it is made.",
    "stream_options": "What a stream tells beside the answer.",
    "include_usage": "End the stream with the token counts.",
    "continuous_usage_stats": "With include_usage: the counts in every chunk.",
    "include_obfuscation": "Chunks of random length; not supported: leave it out.",
    "stream_interval": "Tokens a chunk brings; the first is sent at once.",
    # how a call is handled
    "priority": "Lower goes first, on a server that schedules by priority.",
    "request_id": "What the call is known by: 1 to 128 visible ASCII characters.",
    "cache_salt": "Share cached prefixes only with calls of the same salt.",
    # Ollama's
    "OllamaRequest.stream": "Send the answer while it is made; left out: true.",
    "OllamaRequest.logprobs": "Not supported: leave it out.",
    "OllamaRequest.top_logprobs": "Not supported: leave it out.",
    "OllamaGenerateRequest.prompt": "What the user says, or with raw the text to continue.",
    "options": "How to sample.",
    "OllamaShowRequest.options": "Changes nothing.",
    "OllamaShowRequest.system": "Changes nothing.",
    "OllamaShowRequest.template": "Changes nothing.",
    "keep_alive": "Changes nothing: the model stays.",
    "raw": "Continue the prompt as it is, without a chat template.",
    "name": "What model was called once.",
    "verbose": "Changes nothing.",
    "num_predict": "Most tokens to generate; -1 and -2: what the context leaves.",
    "repeat_last_n": "0 turns the repeat penalty off; other values change nothing, it looks at all tokens.",
    **dict.fromkeys(
        ("format", "think", "tools", "suffix", "images", "template", "context", "truncate", "shift"),
        "Not supported: leave it out.",
    ),
    **dict.fromkeys(("width", "height", "steps"), "Not supported: leave it out."),
    **dict.fromkeys(("typical_p", "tfs_z", "mirostat", "penalize_newline"), "Not supported but with Ollama's default."),
    **dict.fromkeys(("mirostat_eta", "mirostat_tau"), "Changes nothing without mirostat."),
    **dict.fromkeys(
        (
            *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "numa", "low_vram", "f16_kv"),
            *("logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only", "draft_num_predict"),
        ),
        "Changes nothing: it says how to load a model, and this one is loaded.",
    ),
}


_DECLARED = {one.name: str(one.metadata["meaning"]) for one in fields(SamplingParams)}
_OF_PARAMETERS = _DECLARED | {theirs: _DECLARED[ours] for theirs, ours in known_to("ollama").items()}


def meaning(kind: type, field: str) -> str | None:
    """Of a struct's field: told for the struct, for one that it inherits from, or for the name."""
    for owner in kind.__mro__:
        if (told := MEANINGS.get(f"{owner.__name__}.{field}")) is not None:
            return told
    return MEANINGS.get(field) or _OF_PARAMETERS.get(field)
