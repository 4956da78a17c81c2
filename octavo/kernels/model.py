"""Model: what a backend needs of a model: its forward pass as functions over `Ops`, and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from octavo.kernels.ops import Ops, Tensor

#: (ops, *hidden) -> [N, columns of the head]: the rest of the pass for N of the tokens. Their hidden states, [N, width]
#: each, are dead afterwards.
Head = Callable[..., Tensor]


#: the inputs of a model that begins with tokens
TOKEN_IDS: Mapping[str, int] = MappingProxyType({"input_ids": 1})


class Model(Protocol):
    """What a backend needs of a model: functions over Ops, and their inputs from a step."""

    @property
    def inputs(self) -> Mapping[str, int]:
        """The inputs beside positions, and their columns: TOKEN_IDS, or {"hidden_states": H} of a later stage."""

    @property
    def heads(self) -> Mapping[str, Head]:
        """The output, by name: "logits" [N, V], or "hidden_states" [N, H] for the next stage."""

    def body(self, ops: Ops, *hidden_states: Tensor) -> tuple[Tensor, ...]:
        """The part in which tokens attend to each other -> hidden states, one or more [T, width]. hidden_states: [T, H]
        from the stage before, if they are an input."""
