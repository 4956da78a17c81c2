"""Self-attention over the paged cache: project, rotate and write, attend, project back."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.kernels.ops import AttentionLayer, Ops, Tensor
from octavo.kernels.parameters import Linear


@dataclass(frozen=True, slots=True, eq=False)
class SelfAttention:
    qkv: Linear  # [(Q + 2K) * D, H]
    out: Linear  # [H, Q * D]
    layer: AttentionLayer

    def attend(self, ops: Ops, x: Tensor) -> Tensor:
        """[T, H] -> [T, Q * D], not projected back yet."""
        return ops.paged_attention(ops.rotary_kv_write(ops.linear(x, self.qkv), self.layer), self.layer)

    def project(self, ops: Ops, attended: Tensor) -> Tensor:
        """[T, Q * D] -> [T, H]."""
        return ops.linear(attended, self.out)
