"""How a router chooses experts, and the gates of MLPs, in torch: the specification of `kernels/mixture.py`.

Shape letters: T tokens, E experts, K chosen, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812

from octavo.kernels.mixture import Gate, Routing
from octavo.kernels.ops import Activation

ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


def gated(gate_up: torch.Tensor, gate: Gate) -> torch.Tensor:
    """[T, 2F] -> [T, F]; gate is the first half of the columns."""
    first, up = gate_up.chunk(2, dim=-1)
    if gate.kind != "clamped":
        return ACTIVATIONS[gate.kind](first) * up
    first, up = first.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
    return first * torch.sigmoid(gate.alpha * first) * (up + 1)


def choose(logits_TE: torch.Tensor, bias_E: torch.Tensor | None, routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
    """The chosen experts [T, K], best first, and their weights."""
    scores_TE = logits_TE.softmax(-1) if routing.scoring == "softmax" else logits_TE.sigmoid()
    ranked_TE = scores_TE if bias_E is None else scores_TE + bias_E
    if routing.top_groups < routing.num_groups:
        ranked_TE = ranked_TE.where(_in_best_groups(ranked_TE, routing), -torch.inf)
    chosen_TK = _best(ranked_TE, routing.num_chosen)
    weights_TK = scores_TE.gather(-1, chosen_TK)
    if routing.renormalises:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    return chosen_TK, weights_TK * routing.scale


def _in_best_groups(ranked_TE: torch.Tensor, routing: Routing) -> torch.Tensor:
    groups_TGx = ranked_TE.view(len(ranked_TE), routing.num_groups, -1)
    best = groups_TGx.topk(1 if routing.group_score == "largest" else 2, dim=-1).values.sum(-1)
    kept_TG = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, _best(best, routing.top_groups), True)
    return kept_TG.repeat_interleave(groups_TGx.shape[-1], dim=-1)


def _best(values: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the largest, of equal ones the first; `topk` takes any."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]
