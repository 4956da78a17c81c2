"""Mixture: a layer of experts, of which each token uses a few; its weights, and how its router chooses.

    logits = router(x)                       one for each expert
    scores = softmax(logits), or sigmoid
    chosen = the num_chosen experts by score + bias, of the top_groups best groups
    y = sum over the chosen of weight * down(gate(gate_up(x)))

Weights are the chosen scores (without bias), divided by their sum if `renormalises`, times `scale`. Softmax before the
choice and renormalising after it is the softmax of the chosen logits, which some families are written with.

A rank may have some of the experts, or a part of each: the ranks' results are then added up. Where experts change
places, ranks have slots for them instead, and a table says which slots an expert is in (`placed_experts.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from octavo.kernels.parameters import Linear, Parameter

Scoring = Literal["softmax", "sigmoid"]
GroupScore = Literal["largest", "sum_of_two"]
GateKind = Literal["silu", "gelu", "gelu_tanh", "relu", "clamped"]
SCORINGS: tuple[Scoring, ...] = get_args(Scoring)
GROUP_SCORES: tuple[GroupScore, ...] = get_args(GroupScore)
GATE_KINDS: tuple[GateKind, ...] = get_args(GateKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """num_groups: equal groups of experts, scored by their largest score or the sum of their two largest; experts of
    the top_groups best are chosen among."""

    num_experts: int
    num_chosen: int
    scoring: Scoring = "softmax"
    renormalises: bool = True
    scale: float = 1.0
    num_groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "largest"


@dataclass(frozen=True, slots=True)
class Gate:
    """act(gate) * up; or, clamped, g * sigmoid(alpha * g) * (u + 1) with g = min(gate, limit) and u = up between -limit
    and limit."""

    kind: GateKind = "silu"
    alpha: float = 1.702
    limit: float = 7.0


SILU = Gate()


@dataclass(frozen=True, slots=True, eq=False)
class ExpertStack:
    """The same matrix of each expert that a rank has, in their order: [experts, out, in]."""

    experts: tuple[Linear, ...]

    @property
    def in_features(self) -> int:
        return self.experts[0].in_features

    @property
    def out_features(self) -> int:
        return self.experts[0].out_features

    @property
    def parts(self) -> tuple[Parameter, ...]:
        """One below the other they are the whole stack."""
        return tuple(part for expert in self.experts for part in expert.parts)

    @property
    def biases(self) -> tuple[Parameter, ...]:
        return tuple(bias for expert in self.experts for bias in expert.biases)


@dataclass(frozen=True, slots=True)
class ExpertSlots:
    """Of all ranks together, as many on each. most_copies: slots that an expert may have."""

    num_slots: int
    most_copies: int


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """bias: [experts], of the choice. gate_up: gate first. first_expert: the first of this rank's, or its first slot.
    slots: None: experts stay where they are; else gate_up and down are what the slots hold at first."""

    name: str
    routing: Routing
    router: Linear  # [E, H]
    bias: Parameter | None
    gate_up: ExpertStack  # [own, 2F, H]
    down: ExpertStack  # [own, H, F]
    gate: Gate = SILU
    first_expert: int = 0
    slots: ExpertSlots | None = None

    @property
    def num_own(self) -> int:
        return len(self.down.experts)

    @property
    def is_partial(self) -> bool:
        """Whether the results of all ranks are to be added up."""
        num_experts = self.routing.num_experts if self.slots is None else self.slots.num_slots
        return self.num_own < num_experts or self.down.experts[0].is_partial

    @property
    def pairs(self) -> Iterator[tuple[Linear, Linear]]:
        """gate_up and down of each expert that is here, or of each slot."""
        return zip(self.gate_up.experts, self.down.experts, strict=True)

    @property
    def linears(self) -> Iterator[Linear]:
        yield self.router
        for stack in (self.gate_up, self.down):
            yield from stack.experts

    @property
    def parameters(self) -> Iterator[Parameter]:
        for linear in self.linears:
            yield from (*linear.parts, *linear.biases)
        if self.bias is not None:
            yield self.bias
