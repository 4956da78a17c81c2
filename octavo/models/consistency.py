"""What the numbers of a configuration must agree on, whichever file they come from."""

from __future__ import annotations

from pathlib import Path

from octavo.errors import ModelLoadError
from octavo.models.architecture import Architecture


def checked(path: Path, architecture: Architecture) -> Architecture:
    """The architecture itself. Raises ModelLoadError, naming the file, for one that no model can have."""
    problem = _problem(architecture)
    if problem is not None:
        raise ModelLoadError(f"{path}: {problem}; download or convert the model again")
    return architecture


def _problem(a: Architecture) -> str | None:
    if a.num_heads % a.num_kv_heads:
        return f"{a.num_heads} attention heads do not share {a.num_kv_heads} key/value heads evenly"
    if a.num_position_embeddings and a.num_heads * a.head_dim != a.hidden_size:
        return f"{a.hidden_size} columns do not part into {a.num_heads} attention heads"
    for rope in (a.rope, a.local_rope):
        if rope is None:
            continue
        rotary_dim = round(a.head_dim * rope.partial_rotary_factor)
        if not 2 <= rotary_dim <= a.head_dim or rotary_dim % 2:
            return f"{rotary_dim} of a head's {a.head_dim} dimensions would rotate; allowed are even numbers up to all"
        if rope.theta <= 0:
            return f"the rotary base is {rope.theta}; allowed are numbers above 0"
    return None
