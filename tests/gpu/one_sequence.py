"""Runs decode attention of one sequence, and compares it with float32 softmax over the same cache."""

from __future__ import annotations

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.step import DECODES, DeviceStep
from octavo.kernels.cuda.weights import DeviceWeights
from octavo.kernels.cuda_cpp.decode_attention import Kind
from octavo.kernels.cuda_cpp.one_sequence import OneSequence
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform
from tests.gpu.device import DEVICE, TOLERANCE, relative_error
from tests.gpu.paged_batch import PagedBatch
from tests.gpu.test_attention import check_written, transformed_heads


def run_alone(batch: PagedBatch, gpu: GPU) -> torch.Tensor:
    """The result [1, Q * D], of the second of two launches: the first has to leave the counters at zero."""
    layer = batch.layer
    kind = Kind.of(layer, batch.qkv.dtype, batch.layout, True)
    kernel = OneSequence.of_kinds([kind], gpu, DEVICE)[kind]
    transform = HeadTransform.of(layer, DeviceWeights(DEVICE, torch.float32))
    out = torch.full((1, layer.num_heads * layer.head_dim), torch.nan, device=DEVICE, dtype=batch.qkv.dtype)
    arrays = (batch.positions, batch.positions, batch.query_start_loc, batch.seq_lens, batch.rows)
    step = DeviceStep(*arrays, batch.block_tables(batch.block_table), DECODES)
    for _ in range(2):
        kernel.run(batch.qkv, out, layer, batch.pool, step, transform=transform)
    assert not kernel.parts.done.any()
    return out


def poison_rest(batch: PagedBatch) -> None:
    """What lies behind the last token in its block becomes NaN."""
    size, dim, length = batch.pool.block_size, batch.layer.head_dim, int(batch.seq_lens[0])
    block = int(batch.block_table[batch.rows[0], (length - 1) // size])
    for kind in range(2):
        start = block * batch.pool.block_stride + kind * batch.pool.value_offset
        heads = batch.pool.data[start : start + batch.layer.num_kv_heads * size * dim].view(-1, size, dim)
        heads[:, (length - 1) % size + 1 :] = torch.nan


def check_alone(batch: PagedBatch, gpu: GPU) -> None:
    poison_rest(batch)
    q, expected_k, expected_v = transformed_heads(batch)
    out = run_alone(batch, gpu)
    check_written(batch, 0, expected_k[0], expected_v[0])
    assert relative_error(out, batch.attend(q)) < TOLERANCE[batch.qkv.dtype]
    assert batch.is_null_block_as_it_was, "nobody writes the null block"
