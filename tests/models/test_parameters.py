"""A backend's loaded parameters have the checkpoint's names, for every family."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from octavo.kernels.arrays import FloatArray
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.cpu.weights import PackedRows
from octavo.kernels.device import Device, StepBatch, StepLimits
from octavo.kernels.kv_layout import KVGroup, KVLayout
from octavo.kernels.model import Model
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.reference.device import ReferenceDevice
from octavo.kernels.tensor import DType, HostTensor, StoredTensor
from octavo.models.registry import build_model, required_tensors
from octavo.models.weights import TensorSource
from tests.models.architectures import ARCHITECTURES, SLOTS
from tests.models.symbolic import DrawnTensors

families = pytest.mark.parametrize("family", ARCHITECTURES)
dtypes = pytest.mark.parametrize("dtype", ["F32", "Q8_0"])


def loading(family: str, source: TensorSource) -> tuple[Model, KVLayout, StepLimits]:
    a = ARCHITECTURES[family]
    shape = a.num_kv_heads, a.head_dim, a.latent is not None
    groups = tuple(KVGroup(num_layers, *shape) for num_layers in (2, 1))
    model = build_model(a, source, SLOTS, max_model_len=64)
    return model, KVLayout(0, 16, groups, "float32"), StepLimits(32, 4, 64, a.vocab_size)


def load(device: Device, family: str, dtype: DType) -> Mapping[str, Any]:
    return device.load(*loading(family, DrawnTensors(dtype)), "float32").parameters


def expected(family: str, dtype: DType) -> dict[str, FloatArray]:
    """The file's numbers; for Gemma's norms plus the 1 that the family adds."""
    read = DrawnTensors(dtype).read
    values = {name: dequantize(read(name, shape)) for name, shape in required_tensors(ARCHITECTURES[family]).items()}
    is_one_off = family.startswith("gemma")
    return {name: value + np.float32(is_one_off and value.ndim == 1) for name, value in values.items()}


@families
@dtypes
def test_the_reference_finds_every_name_with_its_numbers(family: str, dtype: DType) -> None:
    found = load(ReferenceDevice(), family, dtype)
    for name, values in expected(family, dtype).items():
        assert np.array_equal(found[name].numpy(), values), name


@families
@dtypes
def test_the_cpu_backend_finds_every_name_with_its_numbers_or_its_place(family: str, dtype: DType) -> None:
    found, packed = load(CpuDevice(1), family, dtype), dict[tuple[str, ...], int]()
    for name, values in expected(family, dtype).items():
        held = found[name]
        assert held.shape == values.shape
        if isinstance(held, HostTensor):
            assert np.array_equal(dequantize(held), values), name
        else:
            assert held.num_bytes == DrawnTensors(dtype).read(name, held.shape).data.nbytes
            assert name in held.packed_with
            packed[held.packed_with] = packed.get(held.packed_with, 0) + held.shape[0]
    for names, rows in packed.items():
        places = [found[name] for name in names]
        assert all(isinstance(place, PackedRows) for place in places)
        assert rows == places[-1].first_row + places[-1].shape[0], "the parts fill the matrix"


def test_what_is_found_cannot_be_replaced() -> None:
    found = load(ReferenceDevice(), "llama", "F32")
    with pytest.raises(TypeError):
        found["model.norm.weight"] = found["lm_head.weight"]  # type: ignore[index]


def test_a_matrix_is_let_go_once_it_is_packed() -> None:
    """Weights that are computed when read, such as converted ones, are never all in memory at once."""
    alive, most = dict[int, str](), 0

    class Tensors(DrawnTensors):
        def take(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
            return StoredTensor("F32", shape, lambda: self.read(name, shape))

        def read(self, name: str, shape: tuple[int, ...]) -> HostTensor:
            nonlocal most
            tensor = super().read(name, shape)
            alive[id(tensor)] = name
            weakref.finalize(tensor.data.base, alive.pop, id(tensor))
            most = max(most, sum("_proj" in name for name in alive.values()))
            return tensor

    loaded = CpuDevice(1).load(*loading("llama", Tensors()), "float32")
    assert most == 3, "queries, keys and values"
    assert not any("_proj" in name for name in alive.values())
    assert "model.layers.2.mlp.down_proj.weight" in loaded.parameters


def test_a_parameter_written_to_is_what_the_model_computes_with() -> None:
    loaded = ReferenceDevice().load(*loading("phi3", DrawnTensors()), "float32")
    tables = tuple(np.full((4, 4), block_id, np.int32) for block_id in (1, 2))
    tokens, one = np.array([3], np.int32), np.ones(1, np.int32)
    model = loaded.bind(3)
    model.forward(StepBatch(tokens, one - 1, np.array([0, 1], np.int32), one, one - 1, tables))
    assert model.logits(one - 1).any()
    loaded.parameters["lm_head.weight"].zero_()
    assert not model.logits(one - 1).any()
