"""Allocates, describes and launches the kernel of csrc/cuda/decode_attention.cu."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import Array, Structure, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.attention_plan import PlanArrays, SharedPlan
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.module import Kernel, TensorMap
from octavo.kernels.cuda_cpp.shape import BOX_TOKENS, Occupancy, Shape, partial_shapes
from octavo.kernels.kv_layout import LARGEST_CODE, KVDType, KVLayout
from octavo.kernels.triton.attention.memory import LayerPool
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform

THREADS = 160
_BYTES = torch.uint8
_LOG2_E = math.log2(math.e)
#: by the codes of the cache, and whether there are sinks: names of csrc/cuda/hooks.cuh and coded_cache.cuh
_HOOKS: dict[tuple[KVDType | None, bool], str] = {
    (None, True): "Sinks",
    ("fp8", False): "Fp8Cache",
    ("int8", False): "Int8Cache",
    ("fp8", True): "Fp8CacheAndSinks",
    ("int8", True): "Int8CacheAndSinks",
}


class Launch(Structure):
    _fields_ = (
        ("plan", PlanArrays),
        *(
            (name, c_void_p)
            for name in (
                "q", "out", "pool", "block_table", "part_values", "part_max_sum", "done",
                "row_scales", "column_scales", "q_norm", "k_norm", "cos", "sin",
            )
        ),
        *((name, c_int64) for name in ("q_stride", "out_stride", "table_stride", "block_stride", "value_offset")),
        *((name, c_int) for name in ("layer_row", "block_rows", "num_kv_heads", "num_stretches", "window")),
        *((name, c_float) for name in ("scale_log2", "softcap_log2", "eps")),
        ("hooks", c_void_p * 4),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Partials:
    """Memory for partial results until they are joined. Layers share it, since they run one after another."""

    values: torch.Tensor
    max_sum: torch.Tensor
    done: torch.Tensor

    @classmethod
    def allocate(cls, part_rows: int, num_seqs: int, shape: Shape, head_dim: int, device: torch.device) -> Partials:
        shapes = partial_shapes(part_rows, num_seqs, shape, head_dim)
        return cls(
            torch.empty(shapes["values"], dtype=torch.float32, device=device),
            torch.empty(shapes["max_sum"], dtype=torch.float32, device=device),
            torch.zeros(shapes["done"], dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True)
class Kind:
    """What the kernel is compiled for. is_fused: q is the projection's output, and the kernel writes the new keys and
    values to the cache; otherwise q is already normed and rotated, and the cache up to date."""

    head_dim: int
    shape: Shape
    dtype: torch.dtype
    block_size: int
    has_window: bool
    has_softcap: bool
    is_fused: bool
    rotary_dim: int
    has_norm: bool
    codes: KVDType | None = None  # of a cache of 8 bits
    has_sinks: bool = False

    @classmethod
    def of(cls, layer: AttentionLayer, dtype: torch.dtype, kv: KVLayout, is_fused: bool, max_queries: int = 1) -> Kind:
        return cls(
            layer.head_dim, Shape.of(layer, max_queries), dtype, kv.block_size, layer.window is not None,
            layer.softcap is not None, is_fused,
            layer.rotary.rotary_dim if is_fused and layer.rotary is not None else 0,
            is_fused and layer.q_norm is not None, kv.dtype if kv.dtype in LARGEST_CODE else None,
            layer.sinks is not None,
        )  # fmt: skip

    def compile(self, gpu: GPU, *, has_copy_engine: bool | None = None, source: Path | None = None) -> bytes:
        """has_copy_engine: use Hopper's copy engine; by default wherever there is one. source: a file that includes the
        kernel and defines its own hooks (csrc/cuda/hooks.cuh)."""
        macros = self.macros(gpu, has_copy_engine=has_copy_engine)
        return compile_kernel("decode_attention", macros, gpu.capability, source)

    def macros(self, gpu: GPU, *, has_copy_engine: bool | None = None) -> dict[str, str | int]:
        """The compile-time parameters of csrc/cuda/attention_kind.cuh."""
        occupancy = Occupancy.of(self.shape, self.head_dim, gpu.capability, has_codes=self.codes is not None)
        assert occupancy is not None, "a layer that does not fit is not compiled"
        copies = gpu.capability >= (9, 0) if has_copy_engine is None else has_copy_engine
        macros: dict[str, str | int] = {
            "HEAD_DIM": self.head_dim,
            "GROUP": self.shape.group,
            "BLOCK_SIZE": self.block_size,
            "ELEMENT": "Fp16" if self.dtype == torch.float16 else "Bf16",
            "MAX_QUERIES": self.shape.max_queries,
            "HAS_WINDOW": int(self.has_window),
            "HAS_SOFTCAP": int(self.has_softcap),
            "IS_FUSED": int(self.is_fused),
            "ROTARY_DIM": self.rotary_dim,
            "HAS_NORM": int(self.has_norm),
            "IS_CHAINED": int(gpu.chains),
            "HAS_COPY_ENGINE": int(copies),
            "HAS_WGMMA": int(copies and gpu.capability[0] == 9 and self.codes is None),
            "RING_ENTRIES": occupancy.entries,
            "BLOCKS_PER_MULTIPROCESSOR": occupancy.blocks,
        }
        if (hooks := _HOOKS.get((self.codes, self.has_sinks))) is not None:
            macros["HOOKS"] = hooks
        return macros


class DecodeAttention:
    """The kernel for layers of one kind. source: see `Kind.compile`; hooks: the addresses that its hooks hold."""

    def __init__(
        self, kind: Kind, gpu: GPU, *, has_copy_engine: bool | None = None, source: Path | None = None,
        hooks: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._chained = gpu.chains
        self._kind, self._hooks = kind, (c_void_p * 4)(*hooks)
        cubin = kind.compile(gpu, has_copy_engine=has_copy_engine, source=source)
        self._kernel = Kernel(cubin, "octavo_decode_attention")
        self._shared_bytes = self._kernel.number("octavo_shared_bytes")
        self._kernel.allow_shared(self._shared_bytes)

    def run(
        self, q: torch.Tensor, out: torch.Tensor, layer: AttentionLayer, pool: LayerPool, plan: SharedPlan,
        partials: Partials, *, block_table: torch.Tensor, transform: HeadTransform | None,
    ) -> None:  # fmt: skip
        """Write those rows of `out` [T, Q * D] that belong to decoding sequences. `q` and `transform`: see `Kind`."""
        launch = launch_of(q, out, layer, pool, self._hooks_of(pool), block_table, transform, plan, partials)
        self._kernel.launch(
            plan.num_stretches * layer.num_kv_heads, THREADS, (launch, map_of(pool, layer, q.dtype)),
            shared_bytes=self._shared_bytes, stream=torch.cuda.current_stream().cuda_stream, chained=self._chained,
        )  # fmt: skip

    def _hooks_of(self, pool: LayerPool) -> Array[c_void_p]:
        return hooks_of(self._kind, pool) or self._hooks


def hooks_of(kind: Kind, pool: LayerPool) -> Array[c_void_p] | None:
    """What the kind's own hooks hold, in the order of their fields; None: they hold nothing."""
    own = [pool.scales.data_ptr()] if kind.codes is not None else []
    own += [pool.sinks.data_ptr()] if kind.has_sinks else []
    return (c_void_p * 4)(*own) if own else None


def launch_of(
    q: torch.Tensor, out: torch.Tensor, layer: AttentionLayer, pool: LayerPool, hooks: Array[c_void_p],
    block_table: torch.Tensor, transform: HeadTransform | None, plan: SharedPlan | None = None,
    partials: Partials | None = None,
) -> Launch:  # fmt: skip
    """What a kernel is launched with that includes csrc/cuda/attention_kind.cuh."""
    heads = transform if transform is not None else HeadTransform.none(q)
    parts = (None, None, None) if partials is None else (partials.values, partials.max_sum, partials.done)
    arrays = (
        q, out, pool.data, block_table, *parts,
        heads.row_scales, heads.column_scales, heads.q_norm, heads.k_norm, heads.cos, heads.sin,
    )  # fmt: skip
    addresses = (0 if array is None else array.data_ptr() for array in arrays)
    return Launch(
        PlanArrays() if plan is None else plan.struct, *addresses, q.stride(0), out.stride(0), block_table.stride(0),
        pool.block_stride, pool.value_offset, pool.layer_row, pool.block_stride // layer.head_dim,
        layer.num_kv_heads, 0 if plan is None else plan.num_stretches, layer.window or 0, layer.scale * _LOG2_E,
        (layer.softcap or 0.0) * _LOG2_E, heads.eps, hooks,
    )  # fmt: skip


def map_of(pool: LayerPool, layer: AttentionLayer, dtype: torch.dtype) -> TensorMap:
    """The whole pool as rows of a head, for the copy engine. dtype: that of queries."""
    element = _BYTES if pool.codes["HAS_CODES"] else dtype
    return _map_of(pool.rows.base.data_ptr(), pool.rows.shape[0], layer.head_dim, element)


@lru_cache(maxsize=64)
def _map_of(address: int, num_rows: int, dim: int, element: torch.dtype) -> TensorMap:
    if element == _BYTES:
        return TensorMap.of_codes(address, num_rows, dim, box_rows=BOX_TOKENS)
    is_half = element == torch.float16
    return TensorMap.of_rows(address, num_rows, dim, is_half=is_half, box_rows=BOX_TOKENS, box_dim=64)
