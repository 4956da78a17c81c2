"""What a backend has loaded is found by the names of the checkpoint, for every family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.cpu.weights import PackedRows
from octavo.kernels.device import Device
from octavo.kernels.ops import FloatArray, KVLayout, StepLimits
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.reference.device import ReferenceDevice
from octavo.kernels.tensor import DType, HostTensor
from octavo.models.registry import build_model, required_tensors
from tests.models.architectures import ARCHITECTURES, SLOTS
from tests.models.symbolic import DrawnTensors

families = pytest.mark.parametrize("family", ARCHITECTURES)
dtypes = pytest.mark.parametrize("dtype", ["F32", "Q8_0"])


def load(device: Device, family: str, dtype: DType) -> Mapping[str, Any]:
    a = ARCHITECTURES[family]
    model = build_model(a, DrawnTensors(dtype), SLOTS, max_model_len=64)
    kv = KVLayout(0, 16, 2, a.num_kv_heads, a.head_dim, "float32")
    return device.load(model, kv, StepLimits(32, 4, 64, a.vocab_size), "float32").parameters


def expected(family: str, dtype: DType) -> dict[str, FloatArray]:
    """The file's numbers; a Gemma's norms with the 1 that the family adds to them."""
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
