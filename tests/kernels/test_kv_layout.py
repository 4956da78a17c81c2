"""The size of a KV block, and a layer's place in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.kv_layout import KV_ELEMENTS, KVElement, KVGroup, KVLayout

LAYER = AttentionLayer(group=0, index_in_group=0, num_heads=4, num_kv_heads=2, head_dim=64, scale=1.0)
ALIKE = KVLayout(10, 16, (KVGroup(3, 2, 64), KVGroup(2, 2, 64)), "bfloat16")


def test_groups_of_one_shape_need_what_their_layers_need() -> None:
    assert ALIKE.block_bytes == 3 * 2 * 2 * 64 * 16 * 2
    assert replace(ALIKE, dtype="float32").block_bytes == 2 * ALIKE.block_bytes
    assert ALIKE.layer_offset(replace(LAYER, group=1, index_in_group=1)) == ALIKE.block_bytes // 3


def test_a_block_has_room_for_any_group_and_whole_rows_of_each() -> None:
    layout = replace(ALIKE, groups=(KVGroup(2, 2, 96), KVGroup(2, 5, 64)))
    needed = 2 * 2 * 5 * 64 * 16 * 2
    assert needed % (96 * 2)
    assert needed <= layout.block_bytes < needed + 96 * 2 * 64
    assert not layout.block_bytes % (96 * 2)
    assert not layout.block_bytes % (64 * 2)
    assert layout.layer_offset(replace(LAYER, head_dim=96, index_in_group=1)) == 2 * 2 * 96 * 16 * 2


def test_scales_lie_beside_their_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KV_ELEMENTS, "float16", KVElement(1, scale_bytes=4))
    layout = replace(ALIKE, dtype="float16")
    assert layout.layer_bytes(KVGroup(1, 2, 64)) == 2 * 2 * 16 * (64 + 4)
    assert layout.block_bytes >= 3 * layout.layer_bytes(KVGroup(1, 2, 64))


def test_a_layer_without_a_place_is_an_error() -> None:
    ALIKE.check(LAYER)
    with pytest.raises(AssertionError, match="no place"):
        ALIKE.check(replace(LAYER, group=1, index_in_group=2))
    with pytest.raises(AssertionError, match="a layer of 2 KV heads of 96 in blocks for KVGroup"):
        ALIKE.check(replace(LAYER, head_dim=96))
