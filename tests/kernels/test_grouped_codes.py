"""Many rows times experts of codes by the GPU's own kernel, on the CPU (`block_on_cpu/ptx.cuh`).

tests/gpu/test_wide_products.py asks the same of a GPU, for more shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import tests.gpu.device  # noqa: E402, F401  # first: whether Triton interprets is decided when it is imported
from octavo.kernels.cuda.sizes import padded_inputs  # noqa: E402
from octavo.kernels.cuda_cpp import grouped_codes as kernel  # noqa: E402
from octavo.kernels.mixture import Gate  # noqa: E402
from octavo.kernels.reference.mixture import gated  # noqa: E402
from octavo.kernels.scaled import ScaledFormat  # noqa: E402
from octavo.kernels.triton.linear.quantized import deal_spans  # noqa: E402
from tests.gpu.device import relative_error  # noqa: E402
from tests.gpu.test_coded_mixture import stack_of  # noqa: E402
from tests.kernels.kernel_on_cpu import FEW_BLOCKS, run_on_cpu  # noqa: E402

COUNTS, ROWS_OF = [0, 131, 4, 41], 2


@pytest.fixture(autouse=True)
def _runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    run_on_cpu(kernel, tmp_path, monkeypatch)
    monkeypatch.setattr(kernel, "deal_spans", lambda x, out, *, chained: deal_spans(x, out))
    kernel.codes_kernel.cache_clear()
    kernel._map_of.cache_clear()
    yield
    kernel.codes_kernel.cache_clear()
    kernel._map_of.cache_clear()


@pytest.mark.parametrize(
    ("form", "tile"),
    [(ScaledFormat("I8", (1, 128)), kernel.TILES[-1]), (ScaledFormat("U4", (1, 64), has_zeros=True), kernel.TILES[0])],
    ids=["bytes", "nibbles"],
)
def test_codes_and_a_bias(form: ScaledFormat, tile: kernel.CodesTile) -> None:
    """Lists of any length, and tiles and stages that are not whole."""
    columns, depth = 288, 128
    dtype = torch.bfloat16 if form.code == "I8" else torch.float16
    coded, dense = stack_of(form, len(COUNTS), columns, depth, num_parts=1)
    x, bias = torch.randn(-(-sum(COUNTS) // ROWS_OF), depth).to(dtype), torch.randn(len(COUNTS), columns).to(dtype)
    room, pairs = lists()
    out = torch.full((sum(COUNTS), columns), torch.nan, dtype=dtype)
    kernel.multiply_codes(dealt(x), coded, bias, out, room, rows_of=ROWS_OF, gpu=FEW_BLOCKS, tile=tile)
    allowed = 6e-3 if dtype == torch.bfloat16 else 1e-3
    assert relative_error(out, product(x, dense.data, bias, pairs, ROWS_OF)) < allowed


def test_a_mixture_of_mxfp4() -> None:
    """Both products: inputs that fill no span, and a gate whose results are dealt for the second."""
    (hidden, inner), gate, count = (96, 160), Gate("clamped", limit=1.0), len(COUNTS)
    form = ScaledFormat("E2M1", (1, 32))
    stacks = [stack_of(form, count, *shape, num_parts=1) for shape in ((2 * inner, hidden), (hidden, inner))]
    biases = [torch.randn(count, outputs).bfloat16() for outputs in (2 * inner, hidden)]
    x, (room, pairs) = torch.randn(sum(COUNTS) // ROWS_OF, hidden).bfloat16(), lists()
    room.gated = torch.full((sum(COUNTS) * padded_inputs(inner),), torch.nan, dtype=torch.bfloat16)
    room.results = torch.full((sum(COUNTS) * hidden,), torch.nan, dtype=torch.bfloat16)
    results = room.results.view(-1, hidden)
    given = [(coded, bias) for (coded, _), bias in zip(stacks, biases, strict=True)]
    assert kernel.takes_codes(stacks[0][0], stacks[1][0], len(results), ROWS_OF)
    kernel.mixture_of_codes(x, *given, room, results, gate=gate, num_chosen=ROWS_OF, gpu=FEW_BLOCKS)
    middle = gated(product(x, stacks[0][1].data, biases[0], pairs, ROWS_OF), gate)
    assert relative_error(results, product(middle, stacks[1][1].data, biases[1], pairs, 1)) < 8e-3


def lists() -> tuple[Any, Any]:
    """Each expert's pairs, as the router leaves them."""
    pairs = torch.randperm(sum(COUNTS)).int().split(COUNTS)
    order = torch.zeros(len(COUNTS), max(COUNTS), dtype=torch.int32)
    for expert, pair in enumerate(pairs):
        order[expert, : len(pair)] = pair
    return SimpleNamespace(counts=torch.tensor(COUNTS, dtype=torch.int32), order=order, max_rows=max(COUNTS)), pairs


def product(x: Any, matrices: Any, bias: Any, pairs: Any, rows_of: int) -> Any:
    out = torch.empty(sum(COUNTS), matrices.shape[1])
    for expert, pair in enumerate(pairs):
        out[pair.long()] = x[pair.long() // rows_of].float() @ matrices[expert].float().T + bias[expert].float()
    return out


def dealt(x: Any) -> Any:
    out = torch.full((len(x), padded_inputs(x.shape[1])), torch.nan, dtype=x.dtype)
    deal_spans(x, out)
    return out
