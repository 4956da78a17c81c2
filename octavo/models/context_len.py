"""The context length that follows from an Architecture, and the max_model_len that it allows."""

from __future__ import annotations

from octavo.env import allows_long_max_model_len
from octavo.errors import ConfigError
from octavo.models.architecture import Architecture
from octavo.observe.logging import LOGGER

#: kinds of rope scaling that multiply the stated length
_LENGTHENING = ("yarn", "linear", "dynamic")
_LARGEST_LEN = 1 << 31


def context_len(architecture: Architecture) -> int:
    """The most tokens of prompt and output together: the stated length, adjusted for rope scaling.

    Model cards say to add a scaling and to keep `max_position_embeddings` at the trained length:

        yarn             original_max_position_embeddings, times the factor
        linear, dynamic  the stated length, times the factor; or the original length, if it is stated too
        llama3, longrope the stated length, which already includes the scaling
        Gemma 3          the stated length: it includes the scaling of the full-attention layers

    vLLM derives it the same way, but ignores the original length beside a linear scaling.
    """
    stated = architecture.max_position_embeddings
    scaling = (architecture.rope.scaling if architecture.rope is not None else None) or {}
    if scaling.get("rope_type") not in _LENGTHENING or architecture.local_rope is not None:
        return stated
    trained = int(scaling.get("original_max_position_embeddings", stated))
    factor = float(scaling.get("factor", stated / trained))
    return min(max(1, int(trained * factor)), _LARGEST_LEN)


def allowed_model_len(architecture: Architecture, asked: int | None) -> int:
    """The requested max_model_len, or else the model's context length."""
    derived = context_len(architecture)
    if asked is None and architecture.pooling is not None and architecture.pooling.max_len is not None:
        return min(derived, architecture.pooling.max_len)
    if asked is None or asked <= derived:
        return asked or derived
    learned = architecture.num_position_embeddings
    known = f"max_position_embeddings is {architecture.max_position_embeddings}"
    if architecture.rope is not None and architecture.rope.scaling is not None:
        known += f", its rope scaling {architecture.rope.scaling['rope_type']}"
    if not allows_long_max_model_len() or learned:
        advice = "" if learned else "; to go beyond at your own risk, set OCTAVO_ALLOW_LONG_MAX_MODEL_LEN=1"
        raise ConfigError(
            f"max_model_len is {asked}, allowed is up to {derived}, the positions this model was made for "
            f"({known}){advice}"
        )
    LOGGER.warning(
        "max_model_len is %d, beyond the %d positions this model was made for (%s): its answers may get worse there",
        *(asked, derived, known),
    )
    return asked
