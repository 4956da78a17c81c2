"""Latent: attention whose heads share one small vector a token, from which each head's key and value would be made.

    latent c = norm(x W_down)  [R]     key k = rotate(x W_rotary)  [P]     a block holds c and k, once for all heads
    of head h: key (W_key_h c, k)      value W_value_h c                   up: each head's W_key_h, W_value_h below it

Keys and values are never made. A query is moved to the latents' side instead, and what it gathers there is moved back:

    (q_h, r_h) . (W_key_h c, k)  =  (W_key_h^T q_h, r_h) . (c, k)      a query of R + P numbers: `latent_kv_write`
    sum of p W_value_h c         =  W_value_h (sum of p c)             R numbers of each head:   `latent_values`

So attention is that of Q query heads over one key head of R + P numbers, of which the first R are the value. It reads
R + P numbers a token, and for few queries that is all the cost. Chunks of many queries do about three times the
arithmetic that keys and values of each head would take.

Multi-head latent attention: DeepSeek-V2, 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.kernels.parameters import Parameter


@dataclass(frozen=True, slots=True, eq=False)
class Latent:
    """rank: R. key_dim, value_dim: N and V, of a head's key without its rotated part, and of its value. interleaves:
    rotated pairs are neighbours (2i, 2i + 1), not (i, i + P / 2)."""

    rank: int
    key_dim: int
    value_dim: int
    up: Parameter  # [Q * (N + V), R]
    interleaves: bool = True

    @property
    def num_heads(self) -> int:
        """Q, of a rank its own."""
        return self.up.shape[0] // (self.key_dim + self.value_dim)
