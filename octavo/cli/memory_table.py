"""Tables of memory for people: a plan for each number of GPUs, and an engine's plan beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from octavo.cli.terminal_text import beside_one_another
from octavo.kernels.ledger import COMPONENTS, size
from octavo.worker.plan import MemoryPlan

_LENGTHS = (1024, 8192, 32768)


def plan_table(plans: Sequence[MemoryPlan], context: int | None = None) -> list[str]:
    """A column for each plan. context: the length of the requests to count."""
    rows = [["", *(_head(plan) for plan in plans)]]
    if plans[0].num_stages > 1:
        rows.append(["layers", *(_layers(plan) for plan in plans)])
    for component in COMPONENTS:
        if any(plan.ledger.of(component) for plan in plans):
            rows.append([component, *(size(plan.ledger.of(component)) for plan in plans)])
    rows += [
        ["KV blocks", *(size(plan.kv_bytes) for plan in plans)],
        ["total", *(size(plan.total) for plan in plans)],
        [],
        ["KV of a token", *(size(plan.token_bytes) for plan in plans)],
        [f"KV of a block of {plans[0].sizes.layout.block_size}", *(_block(plan) for plan in plans)],
        ["number of blocks", *(f"{plan.num_blocks:,}" for plan in plans)],
        ["longest request", *(f"{_longest(plan):,}" for plan in plans)],
    ]
    for length in _lengths(plans, context):
        rows.append([f"requests of {length:,} at once", *(f"{plan.num_requests(length):,}" for plan in plans)])
    return beside_one_another(rows, names_rows=True)


def measured_table(planned: Mapping[str, int], measured: Mapping[str, int]) -> list[str]:
    """By component: planned, measured, and by how much that is more. The total is of what was measured."""
    names = [name for name in planned if name in measured and (planned[name] or measured[name])]
    rows = [["", "planned", "measured", "difference"]]
    rows += [_compared(name, planned[name], measured[name]) for name in names]
    rows.append(_compared("total", *(sum(each[name] for name in names) for each in (planned, measured))))
    return beside_one_another(rows, names_rows=True)


def _compared(name: str, planned: int, measured: int) -> list[str]:
    off = f"{(measured - planned) / planned:+.1%}" if planned else "-"
    return [name, size(planned), size(measured), off]


def _head(plan: MemoryPlan) -> str:
    one = "1 device" if plan.num_ranks == 1 else f"each of {plan.num_ranks}"
    return one if plan.num_stages == 1 else f"stage {plan.stage}: {one}"


def _layers(plan: MemoryPlan) -> str:
    """The first stage has the embedding, too, and the last one the LM head."""
    layers = plan.sizes.layers
    shown = f"{layers.start}" if len(layers) == 1 else f"{layers.start} to {layers.stop - 1}"
    if plan.stage == 0:
        return f"embedding, {shown}"
    return f"{shown}, head" if plan.stage == plan.num_stages - 1 else shown


def _block(plan: MemoryPlan) -> str:
    return size(plan.sizes.layout.block_bytes)


def _longest(plan: MemoryPlan) -> int:
    return plan.sizes.limits.max_model_len if plan.problem is None else 0


def _lengths(plans: Sequence[MemoryPlan], context: int | None) -> list[int]:
    if context is not None:
        return [context]
    longest = max(map(_longest, plans))
    return [*(length for length in _LENGTHS if length < longest), *([longest] if longest else [])]
