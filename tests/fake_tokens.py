"""Tokens without a model: each is a function of a hash of all tokens before it, the seed and the sample index."""

from __future__ import annotations

from collections.abc import Sequence as Listlike

VOCAB_SIZE = 1000
_MASK = (1 << 64) - 1
EMPTY_PREFIX = 0x9E3779B97F4A7C15


def extend_prefix(prefix_hash: int, token_id: int) -> int:
    mixed = ((prefix_hash ^ token_id) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 29)


def next_token(prefix_hash: int, seed: int, sample_index: int) -> int:
    return extend_prefix(extend_prefix(prefix_hash, seed & _MASK), sample_index) % VOCAB_SIZE


def best_tokens(prefix_hash: int, count: int) -> tuple[list[int], list[float]]:
    """The tokens that are likeliest after a prefix, and their log-probabilities."""
    scored = [(-(extend_prefix(prefix_hash, token_id) % (1 << 40)) / (1 << 37), token_id) for token_id in range(60)]
    best = sorted(scored, reverse=True)[:count]
    return [token_id for _, token_id in best], [logprob for logprob, _ in best]


def prefix_of_adapter(key: int | None) -> int:
    """What the first token of a sequence follows; None: it has no adapter."""
    return EMPTY_PREFIX if key is None else extend_prefix(EMPTY_PREFIX, key)


def generate_alone(
    prompt: Listlike[int], num_tokens: int, seed: int, sample_index: int, prefix_hash: int = EMPTY_PREFIX
) -> list[int]:
    """The tokens of a sequence that runs without batching. Under any plan it must get the same. prefix_hash: what its
    first token follows."""
    for token_id in prompt:
        prefix_hash = extend_prefix(prefix_hash, token_id)
    drawn = []
    for _ in range(num_tokens):
        drawn.append(next_token(prefix_hash, seed, sample_index))
        prefix_hash = extend_prefix(prefix_hash, drawn[-1])
    return drawn
