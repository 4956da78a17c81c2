"""Times one op at several shapes, beside the machine's measured limits: `octavo kernels bench`.

A model of LAYERS calls of the op runs a step. Their inputs are looked up, so each call finds them where a model would
leave them, in the cache, but reads weights, keys and values of its own from memory. On a CPU the program times its ops;
on a GPU a graph of the step is timed, less one of the look-ups alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from octavo.config import BackendConfig
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.device import Device, StepBatch, StepLimits
from octavo.kernels.kv_layout import KVDType, KVGroup, KVLayout
from octavo.kernels.ops import OPS, AttentionLayer, Head, Ops, RotaryTable, Tensor
from octavo.kernels.parameters import Parameter
from octavo.kernels.registry import BACKENDS, ONE_RANK
from octavo.observe import machine
from octavo.testing.made_parameters import linear, parameter
from octavo.testing.op_trials import elementwise_arguments

LAYERS = 8
BLOCK_SIZE = 16
_ROWS = 64  # of the tables that inputs are looked up in
_KV_BYTE = 0x3C  # repeated, a small number in every type


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured on one kind of machine. steps: of attention, (sequences, cached tokens, new tokens)."""

    width: int
    tokens: tuple[int, ...]
    heads: tuple[int, int, int]  # query heads, KV heads, elements of a head
    steps: tuple[tuple[int, int, int], ...]
    dtype: KVDType
    kv_dtype: KVDType
    repeats: int = 7


SIZES = {
    "cpu": Sizes(
        *(2048, (1, 16, 256), (32, 8, 64)),
        *(((1, 1023, 1), (8, 1023, 1), (1, 8191, 1), (1, 0, 512)), "float32", "float16"),
    ),
    "triton": Sizes(
        *(4096, (1, 16, 256, 4096), (32, 8, 128)),
        *(((1, 1023, 1), (32, 4095, 1), (256, 1023, 1), (1, 65535, 1), (1, 0, 4096)), "bfloat16", "bfloat16"),
    ),
}


Call = Callable[[Ops, Sequence[Tensor], int], Any]  # (ops, inputs, layer)


@dataclass(frozen=True, slots=True)
class Case:
    """A shape of an op. step: as in `Sizes`. inputs: widths. num_bytes: read and written, num_flops: of one call.
    beside: what a call does beside it."""

    label: str
    step: tuple[int, int, int]
    inputs: tuple[int, ...]
    call: Call
    num_bytes: int
    num_flops: float = 0.0
    beside: Call | None = None


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


# What is measured


def cases(name: str, sizes: Sizes) -> Iterator[Case]:
    if name in ("paged_attention", "rotary_kv_write"):
        yield from _attention(name, sizes)
        return
    element = 4 if sizes.dtype == "float32" else 2
    width = sizes.width
    in_widths, out_width = _widths(name, width)
    given = _arguments(name, sizes)
    for tokens in sizes.tokens:
        flops, weights = (2.0 * tokens * width * width, width * width) if name == "linear" else (0.0, 0)
        read = width if name == "embedding" else sum(in_widths)
        num_bytes = element * (tokens * (read + out_width) + weights)
        yield Case(f"{tokens} x {width}", (1, 0, tokens), in_widths, partial(_call, name, given), num_bytes, flops)


def _widths(name: str, width: int) -> tuple[tuple[int, ...], int]:
    """Of the inputs, and of all results together."""
    inputs = {"gated_activation": (2 * width,)}.get(name, (width,) * len(OPS[name].inputs))
    return inputs, 2 * width if name == "add_rms_norm" else width


def _arguments(name: str, sizes: Sizes) -> Sequence[tuple[Any, ...]]:
    """Of each layer's call."""
    width = sizes.width
    if OPS[name].is_elementwise:
        return [tuple(next(elementwise_arguments(OPS[name])).values())] * LAYERS
    if name == "all_reduce":
        return [()] * LAYERS
    if name == "gated_activation":
        return [("silu",)] * LAYERS
    if name == "linear":
        weight = np.random.default_rng(0).standard_normal((width, width), np.float32)
        return [(linear(weight),) for _ in range(LAYERS)]
    if name == "embedding":
        table = parameter(np.random.default_rng(0).standard_normal((16 * _ROWS, width), np.float32))
        return [(table, "input_ids")] * LAYERS
    ones = parameter(np.ones(width, np.float32))
    return [(ones, *((None,) if name == "layer_norm" else ()), 1e-5)] * LAYERS


def _call(name: str, given: Sequence[tuple[Any, ...]], ops: Ops, inputs: Sequence[Tensor], layer: int) -> Any:
    return getattr(ops, name)(*inputs, *given[layer])


def _attention(name: str, sizes: Sizes) -> Iterator[Case]:
    heads, kv_heads, dim = sizes.heads
    angles = np.outer(np.arange(_max_len(sizes)), 1e4 ** -(np.arange(dim // 2) / (dim // 2))).astype(np.float32)
    rotary = RotaryTable(np.cos(angles), np.sin(angles))
    layers = [AttentionLayer(0, i, heads, kv_heads, dim, dim**-0.5, rotary=rotary) for i in range(LAYERS)]
    activation, element = (4 if sizes.dtype == "float32" else 2), 4 if sizes.kv_dtype == "float32" else 2
    for step in sizes.steps:
        num_seqs, cached, new = step
        pairs = num_seqs * sum(cached + i + 1 for i in range(new))
        tokens, stored = num_seqs * new, num_seqs * (cached + new)
        label = f"{num_seqs} x {new} new, {cached + new} in all, {heads}/{kv_heads} heads of {dim}"
        if name == "paged_attention":
            num_bytes = 2 * kv_heads * dim * element * stored + 2 * activation * heads * dim * tokens
            yield Case(label, step, (heads * dim,), partial(_attend, layers), num_bytes, 4.0 * heads * dim * pairs)
        else:
            num_bytes = tokens * dim * (activation * (2 * heads + 2 * kv_heads) + element * 2 * kv_heads)
            inputs = (heads * dim, (heads + 2 * kv_heads) * dim)
            yield Case(label, step, inputs, partial(_write, layers), num_bytes, beside=partial(_attend, layers))


def _max_len(sizes: Sizes) -> int:
    return max(cached + new for _, cached, new in sizes.steps)


def _attend(layers: Sequence[AttentionLayer], ops: Ops, inputs: Sequence[Tensor], layer: int) -> Tensor:
    return ops.paged_attention(inputs[0], layers[layer])


def _write(layers: Sequence[AttentionLayer], ops: Ops, inputs: Sequence[Tensor], layer: int) -> Tensor:
    """Beside attention, for which a GPU's step plans the slots that are written."""
    ops.rotary_kv_write(inputs[1], layers[layer])
    return _attend(layers, ops, inputs, layer)


# How it is measured


@dataclass(frozen=True)
class _Layers:
    """A model of calls, or of what is beside each op alone. The head is not run."""

    tables: tuple[Parameter, ...]
    call: Call | None
    num_layers: int = LAYERS
    inputs = ("input_ids",)

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
    kv = KVLayout(0, BLOCK_SIZE, (KVGroup(LAYERS, kv_heads, dim),), sizes.kv_dtype)
    limits = StepLimits(num_seqs * new, num_seqs, max(cached + new, BLOCK_SIZE), 32)
    rng = np.random.default_rng(1)
    batch = StepBatch(
        input_ids=rng.integers(0, _ROWS, num_seqs * new, np.int32),
        positions=np.tile(np.arange(cached, cached + new, dtype=np.int32), num_seqs),
        query_start_loc=np.arange(num_seqs + 1, dtype=np.int32) * np.int32(new),
        seq_lens=np.full(num_seqs, cached + new, np.int32),
        rows=np.arange(num_seqs, dtype=np.int32),
        block_tables=(rng.permutation(np.arange(1, num_blocks, dtype=np.int32)).reshape(num_seqs, table_len),),
    )
    return device.load(model, kv, limits, sizes.dtype).bind(num_blocks), batch


def _tables(case: Case) -> tuple[Parameter, ...]:
    rng = np.random.default_rng(2)
    return tuple(parameter(rng.standard_normal((_ROWS, width), np.float32)) for width in case.inputs)


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
