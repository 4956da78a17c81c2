"""What the numbers of a configuration must agree on, whichever file they come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from octavo.errors import ModelLoadError
from octavo.models.architecture import Architecture, RopeConfig
from octavo.observe.logging import LOGGER
from octavo.shown import shown_names


def checked(path: Path, architecture: Architecture) -> Architecture:
    """The architecture itself. Raises ModelLoadError, naming the file, for one that no model can have."""
    problem = _problem(architecture)
    if problem is not None:
        raise ModelLoadError(f"{path}: {problem}; download or convert the model again")
    return architecture


def known_tokens(token_ids: Sequence[int], vocab_size: int, where: str) -> tuple[int, ...]:
    """Those that the model can draw. A file may name others (a token that was added to the tokenizer and not to the
    model): they can end nothing, so they are left out with a warning. where: file and key."""
    unknown = [token_id for token_id in token_ids if token_id >= vocab_size]
    if unknown:
        LOGGER.warning(
            "%s names token %s, beyond the model's vocabulary of %d; it is ignored",
            *(where, shown_names([str(token_id) for token_id in unknown]), vocab_size),
        )
    return tuple(token_id for token_id in token_ids if token_id < vocab_size)


def _problem(a: Architecture) -> str | None:
    if a.num_heads % a.num_kv_heads:
        return f"{a.num_heads} attention heads do not share {a.num_kv_heads} key/value heads evenly"
    if a.num_position_embeddings and a.num_heads * a.head_dim != a.hidden_size:
        return f"{a.hidden_size} columns do not part into {a.num_heads} attention heads"
    if a.num_position_embeddings and a.num_kv_heads != a.num_heads:
        return (
            f"a {a.family} model has a key/value head for each of {a.num_heads} attention heads, not {a.num_kv_heads}"
        )
    for rope in (a.rope, a.local_rope):
        problem = None if rope is None else _rope_problem(a, rope)
        if problem is not None:
            return problem
    return None


def _rope_problem(a: Architecture, rope: RopeConfig) -> str | None:
    if a.head_dim % 2:
        return f"heads have {a.head_dim} dimensions; where they rotate, allowed are even numbers"
    rotary_dim = round(a.head_dim * rope.partial_rotary_factor)
    if not 2 <= rotary_dim <= a.head_dim or rotary_dim % 2:
        return f"{rotary_dim} of a head's {a.head_dim} dimensions would rotate; allowed are even numbers up to all"
    if not rope.theta > 1:
        return f"the rotary base is {rope.theta}; allowed are numbers above 1"
    scaling = rope.scaling or {}
    rope_type = scaling.get("rope_type", "default")
    if rope_type == "dynamic" and rotary_dim < 4:
        return f"dynamic rope scaling is of no use for {rotary_dim} rotated dimensions; allowed are 4 or more"
    if rope_type == "llama3" and not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        return (
            f"llama3 rope scaling has low_freq_factor {scaling['low_freq_factor']:g} and high_freq_factor "
            f"{scaling['high_freq_factor']:g}; allowed is a lower low one"
        )
    if rope_type in ("longrope", "su"):
        for key in ("short_factor", "long_factor"):
            count = len(scaling.get(key, ()))
            if count != rotary_dim // 2:
                return (
                    f"rope scaling's {key} holds {count} factors; allowed are {rotary_dim // 2}, one for each pair "
                    f"of the {rotary_dim} rotated dimensions"
                )
    return None
