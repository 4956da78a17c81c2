"""What a started engine tells its user: what runs, where and why."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.models.architecture import context_len
from octavo.observe.logging import LOGGER
from octavo.shown import shown_names
from octavo.worker.task import WorkerShape


def start_up_card(shape: WorkerShape, seconds: float) -> list[tuple[str, str]]:
    """What runs, where and why, as (label, text) lines."""
    architecture, layout, limits = shape.architecture, shape.layout, shape.limits
    num_tokens = (layout.num_blocks - 1) * layout.block_size
    context = f"{limits.max_model_len:,} tokens"
    if limits.max_model_len < context_len(architecture):
        context += f" of the model's {context_len(architecture):,}"
    on_each = " on each rank" if shape.ranks else ""
    codes = f" with {shape.kv_scales}" if shape.kv_scales else ""
    lines = [
        ("model", f"{shape.label} ({architecture.family}, {architecture.num_layers} layers)"),
        ("weights", f"{_size(shape.weight_bytes)} as {shape.weight_dtypes}"),
        (
            "KV cache",
            f"{layout.num_blocks - 1:,} blocks of {layout.block_size} tokens, "
            f"{_size(layout.num_blocks * layout.block_bytes)} as {layout.dtype}{codes}{on_each}",
        ),
        ("holds", f"{num_tokens:,} tokens in one cache group, {limits.max_num_seqs} sequences at once"),
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
    return lines


def warn_of_leftovers(label: str, unused: Sequence[str]) -> None:
    """Warn of tensors that the model did not use: its configuration may describe another model."""
    if unused:
        LOGGER.warning(
            "%s: %d tensors are not used, the model's configuration has no place for them: %s",
            *(label, len(unused), shown_names(unused)),
        )


def _size(num_bytes: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:,.1f} {unit}"
    return f"{num_bytes} bytes"
