"""Times one op at several shapes, or the moves of KV blocks, beside the machine's limits: `octavo kernels bench`.

A model of LAYERS calls of the op runs a step. Their inputs are looked up, so each call finds them where a model would
leave them, in the cache, but reads weights, keys and values of its own from memory. On a CPU the program times its ops;
on a GPU a graph of the step is timed, less one of the look-ups alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from octavo.config import BackendConfig
from octavo.kernels.block_mover import HostMover
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.device import Device, StepBatch, StepLimits
from octavo.kernels.kv_layout import KVGroup, KVLayout
from octavo.kernels.model import TOKEN_IDS, Head
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Parameter
from octavo.kernels.registry import BACKENDS, ONE_RANK
from octavo.observe import machine
from octavo.testing.made_parameters import linear, parameter
from octavo.testing.op_cases import LAYERS, TABLE_ROWS, Call, Case, Sizes, cases

BLOCK_SIZE = 16
_KV_BYTE = 0x3C  # repeated, a small number in every type
#: bytes of a KV block, and how many move; small blocks are those of a small model
_MOVES = {"triton": ((64 << 10, 256), (2 << 20, 16), (2 << 20, 256)), "cpu": ((64 << 10, 64), (2 << 20, 64))}


@dataclass(frozen=True, slots=True)
class Limits:
    """moved: bytes/s of a long copy, read and written, or on a CPU of a long read if that is more, since a CPU also
    fetches what a copy overwrites. multiplied: FLOP/s of a large product in the backend's type."""

    moved: float
    multiplied: float


@dataclass(frozen=True, slots=True)
class Row:
    """A measured case. share: of the limit that it is closer to."""

    case: Case
    seconds: float
    share: float
    is_product: bool

    @property
    def rate(self) -> str:
        if not self.is_product:
            return f"{self.case.num_bytes / self.seconds / 1e9:,.1f} GB/s"
        giga = self.case.num_flops / self.seconds / 1e9
        return f"{giga / 1e3:,.1f} TFLOP/s" if giga >= 1e3 else f"{giga:,.1f} GFLOP/s"


def measure(op: str, backend: str, sizes: Sizes, limits: Limits) -> Iterator[Row]:
    device = BACKENDS[backend](BackendConfig(), ONE_RANK)
    for case in cases(op, sizes):
        seconds = (_cpu_seconds if backend == "cpu" else _gpu_seconds)(op, case, device, sizes)
        shares = (case.num_bytes / limits.moved / seconds, case.num_flops / limits.multiplied / seconds)
        yield Row(case, seconds, max(shares), is_product=shares[1] > shares[0])


@dataclass(frozen=True)
class _Layers:
    """A model of calls, or of what is beside each op alone. The head is not run."""

    tables: tuple[Parameter, ...]
    call: Call | None
    num_layers: int = LAYERS
    inputs = TOKEN_IDS

    @property
    def heads(self) -> dict[str, Head]:
        return {"logits": self.logits}

    def body(self, ops: Ops) -> tuple[Tensor]:
        for layer in range(self.num_layers):
            inputs = [ops.embedding(table, "input_ids") for table in self.tables]
            out = self.call(ops, inputs, layer) if self.call is not None else inputs[0]
        return (out[0] if isinstance(out, tuple) else out,)

    def logits(self, ops: Ops, hidden: Tensor) -> Tensor:
        return ops.linear(hidden, linear(np.zeros((32, hidden.width), np.float32)))


def _load(device: Device, case: Case, sizes: Sizes, model: _Layers) -> tuple[Any, StepBatch]:
    num_seqs, cached, new = case.step
    _, kv_heads, dim = sizes.heads
    table_len = -(-(cached + new) // BLOCK_SIZE)
    num_blocks = 1 + num_seqs * table_len
    latents = KVGroup(LAYERS, 1, case.latent_dim, is_latent=True)
    group = latents if case.latent_dim else KVGroup(LAYERS, kv_heads, dim)
    kv = KVLayout(0, BLOCK_SIZE, (group,), sizes.kv_dtype)
    limits = StepLimits(num_seqs * new, num_seqs, max(cached + new, BLOCK_SIZE), 32)
    rng = np.random.default_rng(1)
    batch = StepBatch(
        input_ids=rng.integers(0, TABLE_ROWS, num_seqs * new, np.int32),
        positions=np.tile(np.arange(cached, cached + new, dtype=np.int32), num_seqs),
        query_start_loc=np.arange(num_seqs + 1, dtype=np.int32) * np.int32(new),
        seq_lens=np.full(num_seqs, cached + new, np.int32),
        rows=np.arange(num_seqs, dtype=np.int32),
        block_tables=(rng.permutation(np.arange(1, num_blocks, dtype=np.int32)).reshape(num_seqs, table_len),),
    )
    bound = device.load(model, kv, limits, sizes.dtype).bind(num_blocks)
    if case.adapters and model.call is case.call:
        for slot, adapter in enumerate(case.adapters):
            bound.place_adapter(slot, bound.prepare_adapter(adapter))
        batch = replace(batch, adapters=np.arange(num_seqs * new, dtype=np.int32) % np.int32(len(case.adapters)))
    return bound, batch


def _tables(case: Case) -> tuple[Parameter, ...]:
    rng = np.random.default_rng(2)
    return tuple(parameter(rng.standard_normal((TABLE_ROWS, width), np.float32)) for width in case.inputs)


def _cpu_seconds(op: str, case: Case, device: Device, sizes: Sizes) -> float:
    """The fastest of several runs, which other programs disturb least."""
    model, batch = _load(device, case, sizes, _Layers(_tables(case), case.call))
    model.pool.fill(_KV_BYTE)
    best = float("inf")
    for _ in range(sizes.repeats + 1):
        model.measure(True)
        model.forward(batch)
        (seconds,) = (each.seconds / LAYERS for each in model.op_times() if each.op == op)
        best = min(best, seconds)
    return best


def _gpu_seconds(op: str, case: Case, device: Device, sizes: Sizes) -> float:
    """By a graph of the step, less one of what is beside the op."""
    from octavo.kernels.cuda.timing import step_time_us

    tables = _tables(case)
    model, batch = _load(device, case, sizes, _Layers(tables, case.call))
    whole = step_time_us(model, batch)
    del model
    if not tables:  # the look-up itself
        model, batch = _load(device, case, sizes, _Layers(tables, case.call, num_layers=1))
        return (whole - step_time_us(model, batch)) / (LAYERS - 1) / 1e6
    model, batch = _load(device, case, sizes, _Layers(tables, case.beside))
    return (whole - step_time_us(model, batch)) / LAYERS / 1e6


def measure_moves(move: str, backend: str, moved: float) -> Iterator[Row]:
    """move: gather_blocks or scatter_blocks. moved: the limit, in bytes/s read and written."""
    for size, count in _MOVES[backend]:
        seconds = (_gpu_move_seconds if backend == "triton" else _host_move_seconds)(move, size, count)
        case = Case(f"{count} blocks of {size >> 10:,} KiB", (1, 0, 1), (), lambda *_: None, 2 * size * count)
        yield Row(case, seconds, case.num_bytes / moved / seconds, is_product=False)


def _gpu_move_seconds(move: str, size: int, count: int) -> float:
    from octavo.kernels.cuda.timing import move_time_us

    return move_time_us(move, size, count) / 1e6


def _host_move_seconds(move: str, size: int, count: int) -> float:
    rng = np.random.default_rng(1)
    mover = HostMover("cpu", np.zeros((2 * count, size), np.uint8))
    packed, ids = np.zeros((count, size), np.uint8), rng.permutation(2 * count)[:count].tolist()
    run = mover.read if move == "gather_blocks" else mover.write
    return _fastest(lambda: run(None, ids, packed), repeats=6)


@cache
def limits_of(backend: str) -> Limits:
    if backend != "cpu":
        from octavo.kernels.cuda.timing import measured_limits

        return Limits(*measured_limits())
    num_threads = machine.num_cores()
    source = np.ones(64 << 20, np.float32)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(source, num_threads), np.array_split(target, num_threads), strict=True))
    with ThreadPoolExecutor(num_threads) as pool:
        copying = _fastest(lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)))
        reading = _fastest(lambda: list(pool.map(lambda part: part[0].sum(), parts)))
    a, b = np.random.default_rng(0).standard_normal((2, 2048, 2048), np.float32)
    moved = max(2 * source.nbytes / copying, source.nbytes / reading)
    return Limits(moved, 2 * 2048**3 / _fastest(lambda: a @ b))


def _fastest(call: Callable[[], object], repeats: int = 5) -> float:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def machine_name(backend: str) -> str:
    if backend == "cpu":
        return f"{machine.cpu_name()}, {CpuDevice().num_threads} threads"
    from octavo.kernels.cuda.driver import find_gpu

    gpu = find_gpu(0)
    return "no GPU" if gpu is None else gpu.name
