"""What Ollama's clients say and hear: one struct a request, one an answer.

Their field names are Ollama's. What it has and this engine has not is listed here by name, so that it is refused by
name and never ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.sampling_params import known_to
from octavo.server.api_errors import ApiError
from octavo.server.protocol import ModelRequest, Number, takes_sampling
from octavo.shown import shown


@takes_sampling(known_to("ollama"))
class OllamaOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How to sample. num_predict: most tokens; -1 and -2: what the context leaves. repeat_penalty looks at all
    tokens, the prompt's too; repeat_last_n: 0 turns it off, and no other value changes anything. num_ctx and the
    others below it say what the server was started with, so they change nothing."""

    num_predict: int | None = None
    repeat_last_n: int | None = None
    typical_p: Number | None = None
    tfs_z: Number | None = None
    mirostat: int | None = None
    mirostat_eta: Number | None = None
    mirostat_tau: Number | None = None
    penalize_newline: bool | None = None
    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    num_keep: int | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    embedding_only: bool | None = None
    draft_num_predict: int | None = None


class OllamaRequest(ModelRequest, kw_only=True, forbid_unknown_fields=True):
    """What both calls share. stream: true unless it is false. keep_alive: the model stays whatever it says."""

    stream: bool | None = None
    options: OllamaOptions | None = None
    keep_alive: str | Number | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None
    shift: bool | None = None


class OllamaChatRequest(OllamaRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /api/chat. No messages: the model is asked to be there, and is."""

    messages: list[dict[str, Any]] | None = None
    tools: list[Any] | None = None


class OllamaGenerateRequest(OllamaRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /api/generate. The prompt is what a user says, unless raw is true or the model has no chat template; no
    prompt: as no messages."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    images: list[str] | None = None
    template: str | None = None
    context: list[int] | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None


class OllamaShowRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /api/show. name: what model was called once. verbose: changes nothing."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
    system: str | None = None
    template: str | None = None
    options: dict[str, Any] | None = None


#: field -> values that ask for nothing; the others are what this engine does not do
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "format": ("",),
    "think": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "truncate": (False,),
    "shift": (False,),
    "tools": ([],),
    "suffix": ("",),
    "images": ([],),
    "template": ("",),
    "context": ([],),
    "width": (0,),
    "height": (0,),
    "steps": (0,),
    "typical_p": (1, 0),
    "tfs_z": (1, 0),
    "mirostat": (0,),
    "penalize_newline": (True,),
}


class OllamaMessage(msgspec.Struct, kw_only=True):
    role: str = "assistant"
    content: str


class OllamaCounts(msgspec.Struct, kw_only=True):
    """Of a finished answer. Durations are in nanoseconds; load_duration: from its arrival to its first step."""

    done_reason: str
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int


def check_supported(asked: OllamaRequest) -> None:
    """Raises ApiError for the first field that asks for what is not here."""
    for part, prefix in ((asked, ""), (asked.options, "options.")):
        for name in () if part is None else part.__struct_fields__:
            value = getattr(part, name)
            if name not in _NEUTRAL or value is None or any(value == one for one in _NEUTRAL[name]):
                continue
            instead = " or ".join(["leaving it out", *map(shown, _NEUTRAL[name])])
            raise ApiError(
                400, f"{prefix}{name} is {shown(value)}, which this engine does not support; allowed is {instead}"
            )
    for index, message in enumerate(getattr(asked, "messages", None) or ()):
        if message.get("images"):
            raise ApiError(400, f"messages[{index}].images is given, but the model reads text: leave it out")
