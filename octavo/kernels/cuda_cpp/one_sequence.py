"""Allocates and launches the kernel of csrc/cuda/one_sequence_attention.cu: decode attention of one sequence."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import Structure, c_int, c_void_p
from dataclasses import dataclass

import torch

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.step import DeviceStep
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.decode_attention import Kind, hooks_of, launch_of, map_of
from octavo.kernels.cuda_cpp.module import Kernel
from octavo.kernels.cuda_cpp.shape import CLUSTER_BLOCKS, num_clusters, one_sequence_shapes, takes_one_sequence
from octavo.kernels.triton.attention.memory import LayerPool
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform

THREADS = 288
#: by the size of a head: boxes of 16 tokens that one cluster reads alone. Of more, all clusters of a kv head read, and
#: join what they have
MOST_ALONE = {64: 384, 128: 208}


class _Sequence(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("query_start_loc", "seq_lens", "rows", "values", "max_sum", "done")),
        *((name, c_int) for name in ("most_alone", "num_clusters")),
    )


def takes(kind: Kind, gpu: GPU) -> bool:
    has_codes = kind.codes is not None
    return kind.is_fused and takes_one_sequence(kind.shape, kind.head_dim, gpu, has_codes=has_codes)


def compile_one(kind: Kind, gpu: GPU) -> bytes:
    return compile_kernel("one_sequence_attention", kind.macros(gpu), gpu.capability)


@dataclass(frozen=True, slots=True, eq=False)
class OneSequenceParts:
    """Partial results of clusters, until the last one of a kv head joins them. Layers of one shape share them."""

    values: torch.Tensor
    max_sum: torch.Tensor
    done: torch.Tensor

    @classmethod
    def allocate(cls, num_kv_heads: int, head_dim: int, gpu: GPU, device: torch.device) -> OneSequenceParts:
        shapes = one_sequence_shapes(num_kv_heads, head_dim, gpu)
        return cls(
            torch.empty(shapes["values"], dtype=torch.float32, device=device),
            torch.empty(shapes["max_sum"], dtype=torch.float32, device=device),
            torch.zeros(shapes["done"], dtype=torch.int32, device=device),
        )

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes + self.max_sum.nbytes + self.done.nbytes


class OneSequence:
    """The kernel for layers of one kind. It needs no plan: it finds its tokens by the sequence's length."""

    def __init__(self, kind: Kind, gpu: GPU, parts: OneSequenceParts) -> None:
        self._kind, self._gpu, self.parts = kind, gpu, parts
        self._kernel = Kernel(compile_one(kind, gpu), "octavo_one_sequence_attention")
        self._shared_bytes = self._kernel.take_shared()

    @classmethod
    def of_kinds(cls, kinds: Iterable[Kind], gpu: GPU, device: torch.device) -> dict[Kind, OneSequence]:
        """Of those kinds that it takes."""
        parts: dict[tuple[int, int], OneSequenceParts] = {}
        kernels = {}
        for kind in kinds:
            if takes(kind, gpu):
                shape = kind.shape.num_kv_heads, kind.head_dim
                parts[shape] = parts.get(shape) or OneSequenceParts.allocate(*shape, gpu, device)
                kernels[kind] = cls(kind, gpu, parts[shape])
        return kernels

    def run(
        self, q: torch.Tensor, out: torch.Tensor, layer: AttentionLayer, pool: LayerPool, step: DeviceStep, *,
        transform: HeadTransform,
    ) -> None:  # fmt: skip
        """As `DecodeAttention.run`, for a step of one sequence. Leaves `out` alone if that does not decode."""
        block_table, parts = step.block_tables[layer.group], self.parts
        hooks = hooks_of(self._kind, pool) or (c_void_p * 4)()
        launch = launch_of(q, out, layer, pool, hooks, block_table, transform)
        clusters = num_clusters(layer.num_kv_heads, self._gpu)
        arrays = (step.query_start_loc, step.seq_lens, step.rows, parts.values, parts.max_sum, parts.done)
        sequence = _Sequence(*(array.data_ptr() for array in arrays), MOST_ALONE[layer.head_dim], clusters)
        self._kernel.launch(
            clusters * layer.num_kv_heads * CLUSTER_BLOCKS, THREADS, (launch, map_of(pool, layer, q.dtype), sequence),
            shared_bytes=self._shared_bytes, stream=torch.cuda.current_stream().cuda_stream, chained=self._gpu.chains,
        )  # fmt: skip
