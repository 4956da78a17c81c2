"""Self-attention over the paged cache: project, rotate and write, attend, project back."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.kernels.ops import AttentionLayer, LinearWeight, Ops, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SelfAttention:
    qkv: LinearWeight  # [(Q + 2K) * D, H]
    out: LinearWeight  # [H, Q * D]
    layer: AttentionLayer

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        q = ops.rotary_kv_write(ops.linear(x, self.qkv), self.layer)
        return ops.linear(ops.paged_attention(q, self.layer), self.out)
