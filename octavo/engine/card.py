"""The start-up card: one look at what runs, where, and why."""

from __future__ import annotations

from octavo.kernels.ops import KVLayout, StepLimits
from octavo.models.checkpoint import Checkpoint


def start_up_card(
    checkpoint: Checkpoint,
    backend: str,
    layout: KVLayout,
    limits: StepLimits,
    seconds: float,
    *,
    device: str | None = None,
) -> list[tuple[str, str]]:
    """(label, text) lines. device: where the model computes, if not on the host."""
    architecture = checkpoint.architecture
    num_tokens = (layout.num_blocks - 1) * layout.block_size
    context = f"{limits.max_model_len:,} tokens"
    if limits.max_model_len < architecture.max_position_embeddings:
        context += f" of the model's {architecture.max_position_embeddings:,}"
    lines = [
        ("model", f"{checkpoint.label} ({architecture.family}, {architecture.num_layers} layers)"),
        ("weights", f"{_size(checkpoint.num_bytes)} as {checkpoint.dtype_label}"),
        (
            "KV cache",
            f"{layout.num_blocks - 1:,} blocks of {layout.block_size} tokens, "
            f"{_size(layout.num_blocks * layout.block_bytes)} as {layout.dtype}",
        ),
        ("holds", f"{num_tokens:,} tokens in one cache group, {limits.max_num_seqs} sequences at once"),
        ("context", context),
        ("step", f"up to {limits.max_num_tokens:,} tokens"),
        ("backend", backend),
        ("ready in", f"{seconds:.2f} s"),
    ]
    if device is not None:
        lines.insert(-1, ("device", device))
    if unused := checkpoint.leftovers():
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        lines.insert(2, ("not used", f"tensors that this architecture has no place for: {', '.join(unused[:3])}{more}"))
    return lines


def _size(num_bytes: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:,.1f} {unit}"
    return f"{num_bytes} bytes"
