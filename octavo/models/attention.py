"""From an Architecture to the AttentionLayer of each of its layers."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.kernels.ops import AttentionLayer, RotaryTable
from octavo.kernels.parameters import Parameter
from octavo.layers.rotary import RotarySetting, rotary_table
from octavo.models.architecture import Architecture, RopeConfig

#: (cache group, index in the group): where a layer's keys and values live
LayerSlot = tuple[int, int]


class AttentionSpecs:
    """Builds each layer's AttentionLayer; layers with the same rope share one table."""

    def __init__(self, architecture: Architecture, slots: Sequence[LayerSlot], max_model_len: int) -> None:
        assert len(slots) == architecture.num_layers, "each layer needs a cache slot"
        self._architecture = architecture
        self._slots = slots
        self._max_model_len = max_model_len
        self._tables: dict[int, RotaryTable] = {}  # by the RopeConfig's identity: it holds a dict and has no hash

    def layer(self, index: int, q_norm: Parameter | None = None, k_norm: Parameter | None = None) -> AttentionLayer:
        a = self._architecture
        group, index_in_group = self._slots[index]
        window = a.windows[index] if a.windows else None
        return AttentionLayer(
            group=group,
            index_in_group=index_in_group,
            num_heads=a.num_heads,
            num_kv_heads=a.num_kv_heads,
            head_dim=a.head_dim,
            scale=a.head_dim**-0.5 if a.attention_scale is None else a.attention_scale,
            window=window,
            softcap=a.attention_softcap,
            q_norm=q_norm,
            k_norm=k_norm,
            norm_eps=a.norm_eps,
            rotary=self._rotary(a.rope if window is None or a.local_rope is None else a.local_rope),
        )

    def _rotary(self, rope: RopeConfig | None) -> RotaryTable | None:
        if rope is None:
            return None
        if id(rope) not in self._tables:
            self._tables[id(rope)] = rotary_table(
                RotarySetting(
                    theta=rope.theta,
                    rotary_dim=round(self._architecture.head_dim * rope.partial_rotary_factor),
                    trained_len=self._architecture.max_position_embeddings,
                    scaling=rope.scaling,
                ),
                self._max_model_len,
            )
        return self._tables[id(rope)]
