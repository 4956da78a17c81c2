"""Admission: what is refused at the door because it could never finish, in words the user can act on.

A request that merely does not fit now waits. One sequence alone must fit; n of them may take turns.
"""

from __future__ import annotations

from octavo.cache.kv_cache import KVCache
from octavo.errors import InvalidRequestError
from octavo.request import Request
from octavo.scheduler.budget import TokenBudget


def check_request(request: Request, *, cache: KVCache, budget: TokenBudget, max_num_seqs: int, max_len: int) -> None:
    """Raise InvalidRequestError unless the request can finish on this engine."""
    name, num_prompt, num_sequences = request.request_id, request.num_prompt_tokens, request.sampling_params.n
    if num_prompt == 0:
        raise InvalidRequestError(f"request {name!r} has an empty prompt, allowed is one token or more")
    if num_prompt >= max_len:
        raise InvalidRequestError(
            f"request {name!r} has {num_prompt} prompt tokens, allowed are {max_len - 1}, one less than max_model_len: "
            "shorten the prompt, set truncate_prompt_tokens, or raise max_model_len"
        )
    if request.max_output_tokens < 1:
        raise InvalidRequestError(
            f"request {name!r} has max_output_tokens {request.max_output_tokens}, allowed is 1 or more"
        )
    if num_sequences > max_num_seqs:
        raise InvalidRequestError(
            f"request {name!r} has n={num_sequences}, allowed is up to max_num_seqs={max_num_seqs}: "
            "lower n or raise max_num_seqs"
        )
    budget.check_prompt(name, num_prompt)
    _check_blocks(request, cache, budget, max_len)


def _check_blocks(request: Request, cache: KVCache, budget: TokenBudget, max_len: int) -> None:
    num_prompt = request.num_prompt_tokens
    num_tokens = min(num_prompt + request.max_output_tokens, max_len) - 1  # the last token is never read back
    num_needed, num_blocks = cache.max_blocks(num_tokens, budget.longest_share), cache.pool.num_blocks - 1
    if num_needed > num_blocks:
        smaller_steps_help = cache.max_blocks(num_tokens, 1) <= num_blocks
        raise InvalidRequestError(
            f"request {request.request_id!r} needs {num_needed} KV blocks for {num_prompt} prompt and up to "
            f"{request.max_output_tokens} output tokens, the pool has {num_blocks}: lower max_tokens, shorten the "
            f"prompt, {'lower max_num_batched_tokens, ' if smaller_steps_help else ''}or raise kv_cache_memory_bytes"
        )
