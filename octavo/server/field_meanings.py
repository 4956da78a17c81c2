"""The meaning of each request field, for /docs and /openapi.json.

Sampling parameters have theirs in SamplingParams, unless they mean something else in a request. A name means the same
in all structs, unless it is listed with its struct in front. A test compares this list with the structs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from octavo.sampling_params import SamplingParams, known_to

MEANINGS: Mapping[str, str] = {
    # every call
    "model": "Any name that the model is served by; left out: the first of them.",
    # adapters
    "lora_name": "The adapter's name, which calls give as their model.",
    "lora_path": "A folder as PEFT saves it, inside lora_root; its path in there, or from the root of the file system.",
    "load_inplace": "Load the folder again if an adapter of that name is loaded.",
    "lora_int_id": "The adapter's number; it need not be given.",
    # prompts and conversations
    "prompt": "A text, a list of texts, token ids, or a list of token-id lists.",
    "messages": "The conversation, oldest first. Keys beside role and content go to the chat template.",
    "BatchChatCompletionRequest.messages": "A list of conversations, each as in one call.",
    "system": "Instructions before the conversation.",
    "role": "user or assistant.",
    "content": "A text, or a list of text blocks.",
    "add_special_tokens": "Add the model's special tokens around the text; chat templates write their own.",
    "add_generation_prompt": "End the prompt where the assistant's answer begins.",
    "continue_final_message": "End the prompt inside the last message, which the answer continues.",
    "chat_template": "Another chat template; refused unless the server trusts those of requests.",
    "chat_template_kwargs": "Variables for the chat template.",
    "documents": "Texts that the chat template may show to the model.",
    "tools": "Functions that the model may call, as {type: function, function: {name, description, parameters}}.",
    "tool_choice": "auto, none, required, {type: function, function: {name}} or {type: allowed_tools}; left out: auto.",
    "CountTokensRequest.tools": "Functions that the model may call, as {name, description, input_schema}.",
    "CountTokensRequest.tool_choice": "{type: auto, any or none}, or {type: tool, name}; disable_parallel_tool_use.",
    "thinking": "{type: enabled, budget_tokens}, or {type: disabled}; left out: as the model does by itself.",
    "parallel_tool_calls": "false: one call in an answer at most.",
    "reasoning_effort": "How much the model thinks, if its chat template has a switch for it.",
    "include_reasoning": "false: leave the thoughts out of the answer.",
    "truncate_prompt_tokens": "Keep this many tokens of the prompt; -1: as many as leave room for max_tokens.",
    "truncation_side": "Where the prompt is cut: left keeps its end, right its beginning.",
    "input": "A text, a list of texts, token ids, or a list of token-id lists.",
    "PoolingRequest.truncate_prompt_tokens": "Keep this many tokens of each text, special ones included; -1: as "
    "many as the model takes.",
    "text_1": "One text, which is compared with each of text_2, or as many as there.",
    "text_2": "A text, or a list of texts.",
    "data_1": "Another name of text_1.",
    "data_2": "Another name of text_2.",
    "queries": "Another name of text_1, beside documents or items.",
    "ScoreRequest.documents": "Another name of text_2, beside queries.",
    "items": "Another name of text_2, beside queries.",
    "query": "What the documents are compared with.",
    "RerankRequest.documents": "Texts.",
    "return_documents": "Whether the answer repeats the documents' texts; left out: yes.",
    "top_n": "Only so many documents, the best; left out, or 0: all.",
    "encoding_format": "float: numbers; base64: their bytes, as float32.",
    "dimensions": "Only so many numbers of each embedding, the first ones.",
    "use_activation": "Whether embeddings are normalised, or classes get probabilities; left out: as the model's "
    "files say.",
    "ScoreRequest.use_activation": "Whether a cross-encoder's score is made with its activation; left out: yes.",
    "RerankRequest.use_activation": "Whether a cross-encoder's score is made with its activation; left out: yes.",
    "task": "embed, classify, token_embed or token_classify; left out: that of tokens, if the model has it.",
    "echo": "Begin the answer with the prompt; in a chat, with the message that it continues.",
    # when an answer ends
    "max_completion_tokens": "Another name of max_tokens.",
    "stop_sequences": "Texts that end an answer.",
    # contents of answers
    "logprobs": "Number of alternatives with each token's log-probability; -1: all, if the server allows it.",
    "ConversationRequest.logprobs": "Report each token's log-probability.",
    "top_logprobs": "Number of tokens with each log-probability, the token itself first; -1: all.",
    "prompt_logprobs": "The same for the prompt's tokens; not in a stream.",
    "logprob_token_ids": "Report these tokens' log-probabilities in place of the most likely; needs logprobs.",
    "return_token_ids": "Report the token ids of the answer and the prompt.",
    "return_tokens_as_token_ids": "Write tokens in logprobs as token_id:7.",
    "return_token_strs": "Report each token as the vocabulary writes it.",
    "tokens": "Token ids.",
    "output_config": "format: the form of the answer, a json_schema.",
    "response_format": "The form of the answer: text, json_object, json_schema or structural_tag.",
    # streams
    "stream": "Send the answer while it is generated.",
    "stream_options": "What a stream sends beside the answer.",
    "include_usage": "End the stream with the token counts.",
    "continuous_usage_stats": "With include_usage: the counts in every chunk.",
    "include_obfuscation": "Chunks of random length; not supported: leave it out.",
    "stream_interval": "Tokens per chunk; the first is sent at once.",
    # sessions
    "SessionRequest.prompt": "A text or token ids.",
    "SessionForkRequest.n": "How many branches to have: the branch itself and its copies.",
    "branch": "The number of a branch.",
    "SessionForkRequest.branch": "The branch to copy; left out: 0.",
    "SessionExtendRequest.branch": "The branch to extend; left out: every branch.",
    "branches": "Numbers of the branches to continue; left out: every branch.",
    "text": "What to append, tokenised without special tokens.",
    "token_ids": "What to append, in place of a text.",
    "SessionGenerateRequest.n": "1: a branch has one continuation; fork it for several.",
    "SessionGenerateRequest.seed": "For branch 0; the others count on by their numbers, so that copies differ.",
    "SessionGenerateRequest.cache_salt": "The session's own: leave it out.",
    **dict.fromkeys(
        (
            *("SessionGenerateRequest.stream", "SessionGenerateRequest.echo", "SessionGenerateRequest.stream_options"),
            *("SessionGenerateRequest.truncate_prompt_tokens", "SessionGenerateRequest.truncation_side"),
            *("SessionGenerateRequest.stream_interval", "SessionGenerateRequest.add_special_tokens"),
        ),
        "Not supported: leave it out.",
    ),
    # responses
    "ResponsesRequest.input": "A text, or items: messages, function_call, function_call_output and reasoning.",
    "instructions": "What the model is told first. A response that continues this one does not repeat it.",
    "previous_response_id": "The kept response whose conversation goes on.",
    "store": "false: do not keep the response.",
    "background": "Answer at once and make the response later; read it with GET.",
    "max_output_tokens": "Most tokens to generate, thoughts included.",
    "max_tool_calls": "Most calls of tools that run in the server, of which there are none.",
    "metadata": "Up to 16 texts by name, which the response has too.",
    "ResponsesRequest.tools": "Functions that the model may call, as {type: function, name, description, parameters}.",
    "ResponsesRequest.tool_choice": "auto, none, required, {type: function, name} or allowed_tools; left out: auto.",
    "reasoning": "How much the model thinks, and how its thoughts are told.",
    "effort": "As reasoning_effort in chats.",
    "summary": "auto or detailed: tell thoughts, in full, as the summary of the reasoning item.",
    "generate_summary": "The former name of summary.",
    "ResponsesRequest.text": "The form of the answer's text.",
    "TextOptions.format": "{type: text}, {type: json_object}, or {type: json_schema, name, schema}.",
    "verbosity": "Only medium is supported.",
    "include": "message.output_text.logprobs: log-probabilities of the text. Other names of OpenAI's add nothing.",
    "ResponsesRequest.top_logprobs": "Number of tokens with each log-probability, 0 to 20.",
    "truncation": "What happens to a conversation that is too long: auto drops its oldest items, disabled refuses it.",
    # how a call is handled
    "priority": "Lower goes first, on a server that schedules by priority.",
    "request_id": "The call's id: 1 to 128 visible ASCII characters.",
    "cache_salt": "Share cached prefixes only with calls of the same salt.",
    # Ollama's
    "OllamaRequest.stream": "Send the answer while it is generated; left out: true.",
    "OllamaRequest.logprobs": "Not supported: leave it out.",
    "OllamaRequest.top_logprobs": "Not supported: leave it out.",
    "OllamaGenerateRequest.prompt": "The user's message; with raw, the text to continue.",
    "OllamaEmbedRequest.input": "A text, or a list of texts.",
    "OllamaEmbedRequest.truncate": "false: refuse a text that is too long, rather than cut it.",
    "OllamaEmbedRequest.options": "Changes nothing.",
    "OllamaEmbeddingsRequest.prompt": "A text.",
    "OllamaEmbeddingsRequest.options": "Changes nothing.",
    "options": "How to sample.",
    "OllamaShowRequest.options": "Changes nothing.",
    "OllamaShowRequest.system": "Changes nothing.",
    "OllamaShowRequest.template": "Changes nothing.",
    "format": "json, or a JSON schema: the form of the answer.",
    "keep_alive": "Changes nothing: the model stays.",
    "raw": "Continue the prompt as it is, without a chat template.",
    "name": "The former name of model.",
    "verbose": "Changes nothing.",
    "num_predict": "Most tokens to generate; -1 and -2: what the context leaves.",
    "repeat_last_n": "0 turns the repeat penalty off; other values change nothing: it covers all tokens.",
    **dict.fromkeys(
        ("think", "tools", "suffix", "images", "template", "context", "truncate", "shift"),
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
        "Changes nothing: it is about loading a model, and this one is loaded.",
    ),
}


_DECLARED = {one.name: str(one.metadata["meaning"]) for one in fields(SamplingParams)}
_OF_PARAMETERS = _DECLARED | {theirs: _DECLARED[ours] for theirs, ours in known_to("ollama").items()}


def meaning(kind: type, field: str) -> str | None:
    """The meaning listed for the struct, for one that it inherits from, or for the name alone."""
    for owner in kind.__mro__:
        if (found := MEANINGS.get(f"{owner.__name__}.{field}")) is not None:
            return found
    return MEANINGS.get(field) or _OF_PARAMETERS.get(field)
