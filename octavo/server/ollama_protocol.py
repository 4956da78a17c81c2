"""What Ollama's clients send: a struct for each route, with Ollama's field names.

Fields that Ollama has and this engine lacks are listed here, so that each is refused by name and never ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.sampling_params import known_to
from octavo.server.api_errors import bad_field
from octavo.server.protocol import ModelRequest, Number, takes_sampling
from octavo.shown import shown


@takes_sampling(known_to("ollama"))
class OllamaOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How to sample. num_predict: most tokens; -1 and -2: what the context leaves. repeat_penalty covers all tokens,
    the prompt's too; repeat_last_n 0 turns it off, and other values change nothing. num_ctx and the fields below it
    are set when the server starts, so they change nothing."""

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
    """What both calls share. stream: true if left out. keep_alive: has no effect, the model stays loaded."""

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
    """POST /api/chat. Without messages it asks only to load the model."""

    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerateRequest(OllamaRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /api/generate. The prompt is a user's message, unless raw is true or the model has no chat template.
    Without a prompt it asks only to load the model."""

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


class OllamaEmbedRequest(ModelRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /api/embed. truncate: true if left out. options and keep_alive: no effect."""

    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: int | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | Number | None = None


class OllamaEmbeddingsRequest(ModelRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /api/embeddings, the former route for one text. options and keep_alive: no effect."""

    prompt: str | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | Number | None = None


class OllamaShowRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /api/show. name: the former name of `model`. verbose: no effect."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
    system: str | None = None
    template: str | None = None
    options: dict[str, Any] | None = None


#: field that this engine lacks -> values that ask for nothing
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("suffix", "template"), ("",)),
    **dict.fromkeys(("logprobs", "truncate", "shift"), (False,)),
    **dict.fromkeys(("top_logprobs", "width", "height", "steps", "mirostat"), (0,)),
    **dict.fromkeys(("images", "context"), ([],)),
    **dict.fromkeys(("typical_p", "tfs_z"), (1, 0)),
    "penalize_newline": (True,),
}


def check_supported(asked: OllamaRequest) -> None:
    """Raises ApiError for the first field that asks for something this engine lacks."""
    for part, prefix in ((asked, ""), (asked.options, "options.")):
        for name in () if part is None else part.__struct_fields__:
            value = getattr(part, name)
            if name not in _NEUTRAL or value is None or any(value == one for one in _NEUTRAL[name]):
                continue
            instead = " or ".join(["leaving it out", *map(shown, _NEUTRAL[name])])
            problem = f"is {shown(value)}, which this engine does not support; allowed is {instead}"
            raise bad_field(prefix + name, problem)
    for index, message in enumerate(getattr(asked, "messages", None) or ()):
        if message.get("images"):
            raise bad_field(f"messages[{index}].images", "is given, but the model reads text: leave it out")
