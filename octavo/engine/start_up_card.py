"""What a started engine tells its user: what runs, where and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from octavo.kernels.ledger import size
from octavo.models.context_len import context_len
from octavo.observe.logging import LOGGER
from octavo.shown import shown_names
from octavo.worker.task import WorkerShape


def start_up_card(shape: WorkerShape, measured: Mapping[str, int], seconds: float) -> list[tuple[str, str]]:
    """What runs, where and why, as (label, text) lines. measured: bytes by component, KV blocks included."""
    architecture, layout, limits = shape.architecture, shape.layout, shape.limits
    num_tokens = (layout.num_blocks - 1) * layout.block_size
    context = f"{limits.max_model_len:,} tokens"
    if limits.max_model_len < context_len(architecture):
        context += f" of the model's {context_len(architecture):,}"
    on_each = " on each rank" if shape.ranks else ""
    codes = f" with {shape.kv_scales}" if shape.kv_scales else ""
    lines = [
        ("model", f"{shape.label} ({architecture.family}, {architecture.num_layers} layers)"),
        ("weights", f"{size(shape.weight_bytes)} as {shape.weight_dtypes}"),
        (
            "KV cache",
            f"{layout.num_blocks - 1:,} blocks of {layout.block_size} tokens, "
            f"{size(layout.num_blocks * layout.block_bytes)} as {layout.dtype}{codes}{on_each}",
        ),
        ("holds", f"{num_tokens:,} tokens in one cache group, {limits.max_num_seqs} sequences at once"),
        ("memory", _memory(shape, measured) + (" on the first rank" if shape.ranks else "")),
        ("context", context),
        ("step", f"up to {limits.max_num_tokens:,} tokens"),
        ("backend", shape.backend),
        ("ready in", f"{seconds:.2f} s"),
    ]
    if shape.quantised:
        lines.insert(2, ("quantised", shape.quantised))
    if shape.device is not None:
        lines.insert(-1, ("device", shape.device))
    if shape.ranks:
        part = "a part of every layer" if shape.num_stages == 1 else f"a part of one of {shape.num_stages} stages"
        text = f"{len(shape.ranks)}, each with {part}, exchanging by {shape.link}"
        lines.insert(-1, ("ranks", f"{text}: {', '.join(shape.ranks)}"))
    if shape.experts is not None and architecture.experts is not None:
        own, count = shape.experts, architecture.experts.routing.num_experts
        text = f"{own[0]}..{own[-1]} of {count} on the first rank, each whole"
        if (plan := shape.balances) is not None:
            text += f"; balanced every {plan.step_interval:,} steps, by the rows of the last {plan.window_size:,}"
            text += f", with {plan.num_redundant_experts} redundant ones" if plan.num_redundant_experts else ""
        lines.insert(-1, ("experts", text))
    return lines


def _memory(shape: WorkerShape, measured: Mapping[str, int]) -> str:
    """Planned and measured of what can be measured. Some of the plan comes with the first steps."""
    kv_bytes = shape.layout.num_blocks * shape.layout.block_bytes
    planned = sum(num_bytes for name, num_bytes in shape.planned.items() if name in measured) + kv_bytes
    now = sum(measured.values())
    return f"{size(planned)} planned for the largest steps, {size(now)} measured now, {(now - planned) / planned:+.1%}"


def warn_of_leftovers(label: str, unused: Sequence[str]) -> None:
    """Warn of tensors that the model did not use: its configuration may describe another model."""
    if unused:
        LOGGER.warning(
            "%s: %d tensors are not used, the model's configuration has no place for them: %s",
            *(label, len(unused), shown_names(unused)),
        )
