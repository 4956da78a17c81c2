"""AttentionLayer: the constants of one layer's attention, as the ops that write and read its keys and values take them.

Shape letters are those of `octavo/kernels/ops.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.latent import Latent
from octavo.kernels.parameters import Parameter


@dataclass(frozen=True, slots=True, eq=False)
class RotaryTable:
    """Rotary angles, computed once per rope setting.

    cos, sin: [max_len, rotary_dim / 2] float32, including any attention scaling.
    Pairs are (i, i + rotary_dim/2), the "neox" order; dimensions past rotary_dim pass through.
    """

    cos: FloatArray
    sin: FloatArray

    @property
    def rotary_dim(self) -> int:
        return 2 * int(self.cos.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class KVScales:
    """What the codes of an 8-bit KV cache are multiplied by. keys, values: [K] float32, a number for each KV head; of
    latents, values is theirs, and keys that of the rotated keys beside them."""

    keys: FloatArray
    values: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class ScoreBias:
    """What is added to scores, by how far apart two tokens are. table: [buckets, Q]. buckets: [2 R + 1], of distances
    -R to R of a key from its query; farther ones have the last one's."""

    table: Parameter
    buckets: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class AttentionLayer:
    """The constants of one layer's attention.

    group, index_in_group: the place of its keys and values (see `kv_layout.py`). scale: multiplies q·k.
    window w: a token at position p sees positions p-w+1 .. p; None sees all. not is_causal: it also sees those after
    it, with a window up to p+w-1; then a step has all tokens of its sequences. softcap c: scores become
    c * tanh(score / c). q_norm, k_norm: RMSNorm weights [D], applied per head before the rotation. sinks [Q]: a
    score of each query head, beside those of keys, that has no value: it takes weight from them. bias: added to scaled
    scores. scales: the checkpoint's; None: codes are the numbers themselves, until scales are calibrated.
    latent: of a layer whose blocks hold keys alone (see `latent.py`): head_dim is R + P, k_norm [R] is the latent's,
    and the P numbers after it rotate.
    """

    group: int
    index_in_group: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    q_norm: Parameter | None = None
    k_norm: Parameter | None = None
    norm_eps: float = 1e-6
    rotary: RotaryTable | None = None
    scales: KVScales | None = None
    bias: ScoreBias | None = None
    is_causal: bool = True
    sinks: Parameter | None = None
    latent: Latent | None = None

    @property
    def value_dim(self) -> int:
        """How many numbers a head gathers."""
        return self.head_dim if self.latent is None else self.latent.rank

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Beside the matrix of latents."""
        bias = None if self.bias is None else self.bias.table
        return tuple(each for each in (self.q_norm, self.k_norm, self.sinks, bias) if each is not None)
