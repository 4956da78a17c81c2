"""How large a call is: whether checking and tokenising it would hold up a front end's other streams."""

from __future__ import annotations

from collections.abc import Mapping, Sized

from octavo.engine.input import Prompt
from octavo.pooling_params import PoolingParams
from octavo.sampling_params import SamplingParams

#: characters or tokens; longer prompts are checked and tokenised on a thread, so that other streams go on
MAX_INLINE_SIZE = 4096
#: characters of bad words, which are tokenised one by one; likewise
MAX_INLINE_BAD_WORDS = 256


def takes_long(prompt: Prompt, params: SamplingParams | PoolingParams | None) -> bool:
    return _is_long(prompt) or _has_long_params(params)


def _is_long(prompt: Prompt) -> bool:
    content = prompt.get("prompt") or prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else prompt
    return isinstance(content, Sized) and len(content) > MAX_INLINE_SIZE


def _has_long_params(params: SamplingParams | PoolingParams | None) -> bool:
    """Whether there are many bad words, or a grammar to compile."""
    if params is None or isinstance(params, PoolingParams):
        return False
    return params.structured_outputs is not None or sum(map(len, params.bad_words or ())) > MAX_INLINE_BAD_WORDS
