"""Tokens to vectors: the token table, scaled, plus learned positions where a family has them."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear, Parameter


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """tokens[input_id] * scale, through the projection, plus positions[position + position_offset]."""

    tokens: Parameter  # [V, H]
    scale: float = 1.0
    positions: Parameter | None = None
    position_offset: int = 0
    projection: Linear | None = None  # to the stream's width, where tokens are narrower

    def __call__(self, ops: Ops) -> Tensor:
        x = ops.embedding(self.tokens, "input_ids", scale=self.scale)
        if self.projection is not None:
            x = ops.linear(x, self.projection)
        if self.positions is None:
            return x
        return ops.add(x, ops.embedding(self.positions, "positions", offset=self.position_offset))
