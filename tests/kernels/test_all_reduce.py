"""Several ranks' partial results add up to the whole, on each rank to the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.distributed.collectives import Collectives
from octavo.kernels.arrays import FloatArray
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Shard
from octavo.kernels.reference.dequantize import values
from octavo.kernels.reference.device import ReferenceDevice
from octavo.testing.made_parameters import parameter
from octavo.testing.op_harness import NUM_ROWS, Harness, random_table
from tests.distributed.threaded_ranks import on_all_ranks

WIDTH = 24
TOKENS = [0, 31, 32, 48, 96, 5]


@pytest.mark.parametrize("make_device", [lambda: CpuDevice(1), ReferenceDevice])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_parts_of_a_table_make_the_whole(make_device: type[ReferenceDevice], num_ranks: int) -> None:
    """Ids outside a rank's part give zeros, and another rank has their rows."""
    whole = values(random_table(WIDTH))

    def run(ranks: Collectives) -> list[FloatArray]:
        _, (rows,) = Shard.columns(NUM_ROWS).slices(whole.shape, ranks.rank, num_ranks)
        part = parameter(whole[rows])

        def embed(ops: Ops) -> Tensor:
            x = ops.embedding(part, "input_ids", offset=-rows.start, scale=2.0, outside="zeros")
            return ops.add(ops.all_reduce(x), ops.embedding(part, "positions"))

        harness = Harness(make_device(), embed, WIDTH, ranks=ranks)
        return [out - values(part)[: len(out)] for out in harness.step([(0, TOKENS)])]

    for (out,) in on_all_ranks(num_ranks, run):
        np.testing.assert_allclose(out, 2 * whole[TOKENS], atol=1e-6)


def test_the_sums_bits_are_the_same_everywhere() -> None:
    parts = np.random.default_rng(0).standard_normal((3, 7, 1001), np.float32)

    def run(ranks: Collectives) -> bytes:
        own = parts[ranks.rank].copy()
        ranks.all_reduce_floats(own.ctypes.data, own.size)
        np.testing.assert_allclose(own, parts.sum(0), rtol=1e-5, atol=1e-6)
        return own.tobytes()

    assert len(set(on_all_ranks(3, run))) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_in_order_do_not_depend_on_how_many_there_are(dtype: torch.dtype) -> None:
    parts = torch.randn((3, 5000), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = (parts[0].float() + parts[1] + parts[2]).to(dtype)

    def run(ranks: Collectives) -> bool:
        found = []
        for count in (1, 48, 5000):
            x = parts[ranks.rank, :count].clone()
            ranks.all_reduce(x)
            found.append(torch.equal(x, expected[:count]))
        return all(found)

    assert on_all_ranks(3, run, in_order=True) == [True] * 3
