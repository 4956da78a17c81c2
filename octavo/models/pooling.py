"""Pooling: how a model's hidden states become one vector for each text, and which classes it tells apart.

CLS     the first token's                 encoders
LAST    the last token's                  decoders: it alone has seen all of the text
MEAN    the mean of all tokens'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octavo.pooling_params import ClassActivation

PoolingKind = Literal["CLS", "LAST", "MEAN"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """normalizes: the vector is divided by its length. max_len: the most tokens that the model is meant to take; None:
    all of its context."""

    kind: PoolingKind
    normalizes: bool = True
    max_len: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """labels: the classes' names, in the order of the head's numbers. activation: what makes probabilities of these.
    of_tokens: each token is classified, instead of the text."""

    labels: tuple[str, ...]
    activation: ClassActivation
    of_tokens: bool = False
