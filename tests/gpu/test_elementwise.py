"""Norms, activations, embedding and add against torch in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, relative_error
from tests.kernels.elementwise_cases import CASES, Case

from octavo.kernels.ops import Activation  # isort: skip
from octavo.kernels.triton.elementwise import elementwise, norm  # isort: skip
from octavo.kernels.triton.elementwise.elementwise import embedding  # isort: skip

DTYPES = [torch.float32, torch.float16, torch.bfloat16] if ON_GPU else [torch.float32]
SHAPES = [(1, 1024), (5, 96), (257, 4096), (3, 2880)] if ON_GPU else [(2, 96)]
EPS = 1e-5


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chained", [False, True] if ON_GPU else [False])
class TestRows:
    def test_rms_norm(self, shape: tuple[int, int], dtype: torch.dtype, chained: bool) -> None:
        x, weight, out = random(*shape, dtype=dtype), random(shape[1]), torch.empty(shape, device=DEVICE, dtype=dtype)
        norm.rms_norm(x, weight, EPS, out, chained=chained)
        assert relative_error(out, F.rms_norm(x.float(), shape[1:], weight, EPS)) < TOLERANCE[dtype]

    def test_rms_norm_of_some_columns(self, shape: tuple[int, int], dtype: torch.dtype, chained: bool) -> None:
        x, width = random(*shape, dtype=dtype), shape[1] // 2
        before, weight, columns = x.clone(), random(width), slice(1, 1 + width)
        norm.rms_norm(x[:, columns], weight, EPS, x[:, columns], chained=chained)
        assert (
            relative_error(x[:, columns], F.rms_norm(before[:, columns].float(), (width,), weight, EPS))
            < TOLERANCE[dtype]
        )
        assert torch.equal(x[:, 1 + width :], before[:, 1 + width :])
        assert torch.equal(x[:, 0], before[:, 0])

    def test_add_rms_norm(self, shape: tuple[int, int], dtype: torch.dtype, chained: bool) -> None:
        x, residual, weight = random(*shape, dtype=dtype), random(*shape, dtype=dtype), random(shape[1])
        total = (x.float() + residual.float()).to(dtype)
        norm.add_rms_norm(x, residual, weight, EPS, x, chained=chained)
        assert torch.equal(residual, total)
        assert relative_error(x, F.rms_norm(total.float(), shape[1:], weight, EPS)) < TOLERANCE[dtype]

    def test_layer_norm(self, shape: tuple[int, int], dtype: torch.dtype, chained: bool) -> None:
        x, weight, bias = random(*shape, dtype=dtype) + 3, random(shape[1]), random(shape[1])
        out = torch.empty_like(x)
        for b in (bias, None):
            norm.layer_norm(x, weight, b, EPS, out, chained=chained)
            assert relative_error(out, F.layer_norm(x.float(), shape[1:], weight, b, EPS)) < TOLERANCE[dtype]

    def test_gated_activation(self, shape: tuple[int, int], dtype: torch.dtype, chained: bool) -> None:
        gate_up = random(shape[0], 2 * shape[1], dtype=dtype)
        out = torch.empty(shape, device=DEVICE, dtype=dtype)
        gate, up = gate_up.float().chunk(2, 1)
        for kind, expected in activations(gate).items():
            elementwise.gated_activation(gate_up, kind, out, chained=chained)
            assert relative_error(out, expected * up) < TOLERANCE[dtype], kind

    def test_inputs_are_dealt(self, shape: tuple[int, int], dtype: torch.dtype, chained: bool) -> None:
        x, weight, gate_up = random(*shape, dtype=dtype), random(shape[1]), random(shape[0], 2 * shape[1], dtype=dtype)
        for give in (
            lambda out, deals: norm.rms_norm(x, weight, EPS, out, deals=deals, chained=chained),
            lambda out, deals: norm.add_rms_norm(out.copy_(x), x.clone(), weight, EPS, out, deals=deals),
            lambda out, deals: elementwise.gated_activation(gate_up, "silu", out, deals=deals, chained=chained),
        ):
            plain, dealt = torch.empty_like(x), torch.empty_like(x)
            give(plain, False)
            give(dealt, True)
            parts = plain.view(len(x), -1, 4, 4, 2)
            assert torch.equal(dealt.view(parts.shape), parts.transpose(2, 3))

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_elementwise_ops(self, shape: tuple[int, int], dtype: torch.dtype, chained: bool, case: Case) -> None:
        inputs = [random(*shape, dtype=dtype) for _ in case.op.inputs]
        out, values = torch.empty_like(inputs[0]), case.arguments.values()
        numbers, words = [v for v in values if not isinstance(v, str)], [v for v in values if isinstance(v, str)]
        elementwise.elementwise(case.name, *inputs, out, numbers=numbers, word="".join(words), chained=chained)
        expected = torch.from_numpy(case.expected(*(x.float().cpu().numpy() for x in inputs)))
        assert relative_error(out.cpu(), expected) < TOLERANCE[dtype]


def activations(x: torch.Tensor) -> dict[Activation, torch.Tensor]:
    return {"silu": F.silu(x), "gelu": F.gelu(x), "gelu_tanh": F.gelu(x, approximate="tanh"), "relu": F.relu(x)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype: torch.dtype) -> None:
    table = random(70, 1536)
    index = torch.tensor([3, 0, 67, 67], dtype=torch.int32, device=DEVICE)
    out = torch.empty(4, 1536, dtype=dtype, device=DEVICE)
    embedding(table, index, out, offset=2, scale=8.0)
    assert torch.equal(out, (table[index + 2] * 8.0).to(dtype))
