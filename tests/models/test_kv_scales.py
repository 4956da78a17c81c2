"""A checkpoint's scales of keys and values: the names that programs give them, ranks' parts, and malformed ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import OctavoError
from octavo.kernels.tensor import HostTensor, StoredTensor, at_hand, from_array
from octavo.models.checkpoint import Checkpoint
from octavo.models.kv_scales import read_kv_scales
from tests.models.architectures import LLAMA

HEADS = 4
ARCHITECTURE = replace(LLAMA, num_heads=8, num_kv_heads=HEADS)


def checkpoint(tensors: Mapping[str, Any]) -> Checkpoint:
    stored = {name: stored_as(value) for name, value in tensors.items()}
    return Checkpoint(label="model", architecture=ARCHITECTURE, stored=stored)


def stored_as(value: Any) -> StoredTensor:
    return at_hand(from_array(np.array(value, np.float32)))


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        ("model.layers.1.self_attn.k_scale", "model.layers.1.self_attn.v_scale"),
        ("model.layers.1.self_attn.attn.k_scale", "model.layers.1.self_attn.attn.v_scale"),
        ("model.layers.1.self_attn.k_proj.k_scale", "model.layers.1.self_attn.v_proj.v_scale"),
        ("model.layers.1.self_attn.k_proj.output_scale", "model.layers.1.self_attn.v_proj.output_scale"),
        ("transformer.h.1.attn.k_scale", "transformer.h.1.attn.v_scale"),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (HEADS,), (HEADS, 1, 1)])
def test_every_spelling_is_read(keys: str, values: str, shape: tuple[int, ...]) -> None:
    own = {keys: np.full(shape, 0.25), values: np.full(shape, 0.5), "model.layers.1.self_attn.q_scale": 1.0}
    given_checkpoint = checkpoint(own)
    found = read_kv_scales(given_checkpoint)
    assert list(found) == [1]
    assert found[1].keys.tolist() == [0.25] * HEADS
    assert found[1].values.tolist() == [0.5] * HEADS
    assert given_checkpoint.leftovers() == ["model.layers.1.self_attn.q_scale"]


def test_a_rank_has_those_of_its_heads() -> None:
    each = np.arange(1, 1 + HEADS)
    whole = checkpoint({"a.layers.0.self_attn.k_scale": each, "a.layers.0.self_attn.v_scale": 8 * each})
    for num_ranks, parts in ((2, [[1, 2], [3, 4]]), (4, [[1], [2], [3], [4]]), (8, [[1], [1], [2], [2]])):
        for rank, part in enumerate(parts):
            found = read_kv_scales(whole, rank, num_ranks)[0]
            assert found.keys.tolist() == part
            assert found.values.tolist() == [8 * one for one in part]


BAD: list[tuple[Any, Any, str]] = [
    (0.5, None, r"model: tensor 'a.layers.0.self_attn.k_scale' has no v_scale beside it"),
    (0.0, 1.0, r"k_scale' has a number that is not above 0"),
    (1.0, [1, 2, np.nan, 3], r"v_scale' has a number that is not above 0"),
    (1.0, np.inf, r"v_scale' has a number that is not above 0"),
    ([1, 2, 3], 1.0, r"k_scale' has shape \[3\], allowed is 1 number, or 4"),
    ([], 1.0, r"k_scale' has shape \[0\], allowed is 1 number, or 4"),
]


@pytest.mark.parametrize(("keys", "values", "said"), BAD)
def test_what_is_malformed_is_named(keys: Any, values: Any, said: str) -> None:
    tensors = {"a.layers.0.self_attn.k_scale": keys, "a.layers.0.self_attn.v_scale": values}
    with pytest.raises(OctavoError, match=said):
        read_kv_scales(checkpoint({name: value for name, value in tensors.items() if value is not None}))


def test_two_scales_of_one_thing_are_refused() -> None:
    names = ["self_attn.k_scale", "self_attn.k_proj.k_scale", "self_attn.v_scale"]
    with pytest.raises(OctavoError, match=r"k_scale' and 'a.layers.0.self_attn.k_proj.k_scale' are both scales"):
        read_kv_scales(checkpoint({f"a.layers.0.{name}": 1.0 for name in names}))


NAMES = st.from_regex(
    r"\A(model\.layers|h)\.(0|1|77|99999999)\.(self_attn|attn)\.([kv]_proj\.)?([kv]_scale|output_scale)\Z"
)
NUMBERS = st.one_of(st.floats(width=32), st.lists(st.floats(width=32), max_size=5))
BYTES = st.integers(0, 4).map(lambda size: at_hand(HostTensor("I8", (size,), np.ones(size, np.uint8))))


@settings(max_examples=100, deadline=None)
@given(tensors=st.dictionaries(NAMES, st.one_of(NUMBERS.map(stored_as), BYTES), max_size=4))
def test_any_scales_are_read_or_refused(tensors: dict[str, StoredTensor]) -> None:
    whole = Checkpoint(label="model", architecture=ARCHITECTURE, stored=tensors)
    try:
        found = read_kv_scales(whole)
    except OctavoError:
        return
    assert {name for name in tensors if name in whole.taken} == whole.taken
    for scales in found.values():
        assert (np.stack([scales.keys, scales.values]) > 0).all()
