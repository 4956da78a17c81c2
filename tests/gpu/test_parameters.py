"""What is on the device is found by the checkpoint's names, packed matrices' parts as views of them."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.ops import KVLayout, StepLimits
from octavo.models.registry import build_model
from tests.gpu.device import DEVICE
from tests.models.architectures import ARCHITECTURES, SLOTS
from tests.models.symbolic import DrawnTensors
from tests.models.test_parameters import expected

from octavo.kernels.cuda.driver import GPU  # isort: skip
from octavo.kernels.cuda.model import TritonModel  # isort: skip


def load(family: str) -> TritonModel:
    a = ARCHITECTURES[family]
    model = build_model(a, DrawnTensors(), SLOTS, max_model_len=64)
    kv = KVLayout(0, 16, 2, a.num_kv_heads, a.head_dim, "float32")
    return TritonModel(
        model, kv, StepLimits(32, 4, 64, a.vocab_size), "float32", DEVICE, GPU("a GPU", (8, 0), 1 << 34, 1), "triton"
    )


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_name_is_found_with_its_numbers(family: str) -> None:
    found = load(family).parameters
    for name, values in expected(family, "F32").items():
        assert torch.equal(found[name].cpu(), torch.from_numpy(values)), name


def test_parts_of_a_packed_matrix_are_views_of_it() -> None:
    found = load("llama").parameters
    parts = [found[f"model.layers.0.self_attn.{x}_proj.weight"] for x in "qkv"]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
