"""The device's parameters have the checkpoint's names, and the parts of a stacked matrix are views of it."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.tensor import DType
from tests.gpu.device import DEVICE
from tests.models.architectures import ARCHITECTURES
from tests.models.symbolic import DrawnTensors
from tests.models.test_parameters import expected, loading

from octavo.kernels.cuda.driver import GPU  # isort: skip
from octavo.kernels.cuda.model import TritonModel  # isort: skip


def load(family: str, dtype: DType = "F32") -> TritonModel:
    gpu = GPU("a GPU", (8, 0), 1 << 34, 1)
    return TritonModel(*loading(family, DrawnTensors(dtype)), "float32", DEVICE, gpu, "auto")


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["F32", "Q8_0"])
def test_every_name_is_found_with_its_numbers(family: str, dtype: DType) -> None:
    """Of a matrix that stays Q8_0, its codes are found: numbers without their scales."""
    found = load(family, dtype).parameters
    for name, values in expected(family, dtype).items():
        numbers = torch.from_numpy(values)
        if found[name].dtype == torch.uint8:
            assert torch.equal(found[name].cpu().view(torch.int8).sign(), numbers.sign().to(torch.int8)), name
        else:
            assert torch.equal(found[name].cpu(), numbers), name


def test_parts_of_a_stacked_matrix_are_views_of_it() -> None:
    found = load("llama").parameters
    parts = [found[f"model.layers.0.self_attn.{x}_proj.weight"] for x in "qkv"]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
