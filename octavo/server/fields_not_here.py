"""Fields of requests that others know and this engine has no use for: accepted, or refused by name, never ignored."""

from __future__ import annotations

from typing import Any

from octavo.vllm_options import SAMPLING_FIELDS

#: accepted with any value: they say who asks, or hint at what a cache does by itself, and change no answer
NO_EFFECT = frozenset(
    {
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "cache_control",
        "session_id",
    }
)

#: what others know and this engine cannot do -> the values that ask for nothing, which are accepted
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto", {"type": "none"}, {"type": "auto"}),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "best_of": (1,),
    "suffix": ("",),
    "prompt_embeds": (),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
    "store": (False,),
    "service_tier": ("auto", "default", "standard_only"),
    "speed": ("standard",),
    "verbosity": ("medium",),
    "reasoning_effort": ("none",),
    "include_reasoning": (True,),
    "thinking": ({"type": "disabled"},),
    "thinking_token_budget": (),
    "output_config": ({},),
    "container": (),
    "mcp_servers": ([],),
    "context_management": (),
    "diagnostics": (),
    "inference_geo": (),
    # No decoder that can be streamed puts a space between special tokens, so there is none to leave out either.
    "spaces_between_special_tokens": (True, False),
    "repetition_detection": (),
    "watermarking": (),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "mm_payload": (),
    "kv_transfer_params": (),
    "ec_transfer_params": (),
    "vllm_xargs": ({},),
    "return_weight_versions": (False,),
    "return_token_offsets": (False,),
    "return_prompt_text": (False,),
}

_NO_TOOLS = "the answer's text is handed out as it is; read calls and thoughts from it"
#: what there is instead, where SamplingParams does not lack the same
INSTEAD: dict[str, str] = {
    "tools": "shown to no model yet over HTTP; put their description into a message",
    "tool_choice": _NO_TOOLS,
    "functions": _NO_TOOLS,
    "function_call": _NO_TOOLS,
    "response_format": "ask for the form in the prompt",
    "suffix": "put what follows into the prompt, in the form that the model knows",
    "prompt_embeds": "prompts are text or token ids",
    "modalities": "models read and write text",
    "audio": "models read and write text",
    "mm_payload": "models read text only",
    "media_io_kwargs": "models read text only",
    "mm_processor_kwargs": "models read text only",
    "store": "nothing is stored",
    "service_tier": "there is one tier; use priority",
    "reasoning_effort": "chat_template_kwargs reaches the template's own switch",
    "include_reasoning": _NO_TOOLS,
    "thinking": _NO_TOOLS,
    "vllm_xargs": "there are no plugins",
}


def instead_of(name: str) -> str | None:
    """What there is in a field's place, as the end of a sentence."""
    known = SAMPLING_FIELDS.get(name)
    return INSTEAD.get(name, known.instead if known is not None else None)
