"""Each op with random tensors and parameters, to be run on one backend and on the reference: `octavo kernels test`.

An element-wise op's trials follow from its declaration. Any other op has its own in `_TRIALS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from octavo.kernels.adapters import AdapterSizes
from octavo.kernels.arrays import FloatArray
from octavo.kernels.attention_layer import AttentionLayer, RotaryTable
from octavo.kernels.device import Device
from octavo.kernels.kv_layout import KVDType
from octavo.kernels.latent import Latent
from octavo.kernels.mixture import Gate, GateKind, Routing
from octavo.kernels.op import Op
from octavo.kernels.ops import OPS, WORDS, Ops, Tensor
from octavo.kernels.parameters import Parameter
from octavo.kernels.reference.device import ReferenceDevice
from octavo.testing.made_parameters import MadeAdapter, adapted, linear, mixture, parameter
from octavo.testing.op_harness import NUM_ROWS, Harness, Pool, random_table

WIDTHS = (64, 1024)
_NUMBERS = (0.7, 30.0)
#: (row, new tokens) of each sequence, step by step: a prompt, then two at once, then decodes beside a chunk
STEPS = (((0, 150),), ((0, 1), (1, 37)), ((0, 1), (1, 1), (2, 9)), ((0, 1), (1, 1)))
Function = Callable[[Ops], Tensor]


@dataclass(frozen=True, slots=True)
class Trial:
    """One call of an op. function: it, on random tensors. width: its result's. adapters: of the slots."""

    label: str
    function: Function
    width: int
    pool: Pool | None = None
    window: int | None = None
    adapters: tuple[MadeAdapter, ...] = ()

    def error(self, device: Device, dtype: KVDType = "float32") -> float:
        """The largest difference from the reference in any element, relative to it and to the typical element."""
        harness, reference = self._harness(device, dtype), self._harness(ReferenceDevice(), "float32")
        worst = 0.0
        for step in STEPS:
            work = [(row, [(7 * i + row) % NUM_ROWS for i in range(count)]) for row, count in step]
            for ours, theirs in zip(harness.step(work), reference.step(work), strict=True):
                worst = max(worst, relative_error(ours, theirs))
        return worst

    def _harness(self, device: Device, dtype: KVDType) -> Harness:
        pool = self.pool or Pool(head_dim=64)
        given = device, self.function, self.width, replace(pool, dtype=dtype), self.window, dtype
        return Harness(*given, adapters=self.adapters)


def relative_error(ours: FloatArray, theirs: FloatArray) -> float:
    """Infinite where only one of the two is a number."""
    if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
        return float("inf")
    typical = float(np.sqrt(np.nanmean(np.square(theirs, dtype=np.float64))))
    error = np.abs(ours.astype(np.float64) - theirs) / (np.abs(theirs) + typical + 1e-30)
    return float(np.nanmax(error, initial=0.0))


def trials(name: str) -> Iterator[Trial]:
    """Random calls of an op, the same ones each time."""
    op = OPS[name]
    if op.is_elementwise:
        yield from _elementwise(op)
    else:
        yield from _TRIALS[name]()


Tables = tuple[Parameter, ...]


def _call(name: str, tables: Tables, *arguments: Any, **named: Any) -> Function:
    """The op on a row of each table."""
    return lambda ops: getattr(ops, name)(*_rows(ops, tables), *arguments, **named)


def _rows(ops: Ops, tables: Tables) -> Iterator[Tensor]:
    return (ops.embedding(table, "input_ids") for table in tables)


def _elementwise(op: Op) -> Iterator[Trial]:
    for given, width in product(elementwise_arguments(op), WIDTHS):
        tables = tuple(random_table(width, seed) for seed in range(len(op.inputs)))
        yield Trial(", ".join([*map(str, given.values()), f"{width} columns"]), _call(op.name, tables, **given), width)


def elementwise_arguments(op: Op) -> Iterator[dict[str, Any]]:
    """Each word, and small and large numbers."""
    choices = [WORDS.get(kind, _NUMBERS if kind == "float" else (1, 3)) for kind in op.kinds.values()]
    for values in product(*choices):
        yield dict(zip(op.kinds, values, strict=True))


def _array(*shape: int, seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _embedding() -> Iterator[Trial]:
    for width in WIDTHS:
        table = parameter(_array(800, width))
        yield Trial(f"{width} columns", _call("embedding", (), table, "positions", scale=3.5), width)


def _all_reduce() -> Iterator[Trial]:
    """Of one rank."""
    for width in WIDTHS:
        yield Trial(f"{width} columns", _call("all_reduce", (random_table(width),)), width)


def _linear() -> Iterator[Trial]:
    for inner, outer in ((64, 96), (1024, 512)):
        matrix = _array(outer, inner) / np.float32(inner**0.5)
        for bias in (None, _array(outer, seed=2)):
            label = f"{inner} -> {outer}{'' if bias is None else ', bias'}"
            yield Trial(label, _call("linear", (random_table(inner),), linear(matrix, bias=bias)), outer)


def _norm(name: str) -> Iterator[Trial]:
    for width in WIDTHS:
        weight, tables = parameter(_array(width)), (random_table(width),)
        if name == "rms_norm":
            yield Trial(f"{width} columns", _call(name, tables, weight, 1e-5), width)
            continue
        for bias in (None, parameter(_array(width, seed=2))):
            label = f"{width} columns{'' if bias is None else ', bias'}"
            yield Trial(label, _call(name, tables, weight, bias, 1e-5), width)


def _norm_queries_keys() -> Iterator[Trial]:
    """Of one rank, and of one of three, of which the others have only zeros."""
    for width, num_ranks in product(WIDTHS, (1, 3)):
        widths = width // 2, width // 4
        weights = (parameter(_array(each, seed=each)) for each in widths)
        call = _call("norm_queries_keys", (random_table(width),), *weights, *widths, 1e-5, num_ranks)
        label = f"{widths[0]} and {widths[1]} of {width} columns, {num_ranks} ranks"
        yield Trial(label, call if num_ranks == 1 else partial(_first, call), width)


def _first(several: Function, ops: Ops) -> Tensor:
    """The first result counts."""
    return several(ops)[0]


def _add_rms_norm() -> Iterator[Trial]:
    for width in WIDTHS:
        weight, tables = parameter(_array(width)), (random_table(width), random_table(width, seed=3))
        both = _call("add_rms_norm", tables, weight, 1e-5)
        yield Trial(f"{width} columns", partial(_added, both), width)


def _added(both: Function, ops: Ops) -> Tensor:
    """Both results count."""
    return ops.add(*both(ops))


def _gated_activation() -> Iterator[Trial]:
    for kind, width in product(WORDS["Activation"], WIDTHS):
        call = _call("gated_activation", (random_table(2 * width),), kind)
        yield Trial(f"{kind}, {width} columns", call, width)


def _gate_rows() -> Iterator[Trial]:
    for width in WIDTHS:
        yield Trial(f"{width} columns", _call("gate_rows", (random_table(width), random_table(1, seed=2))), width)


def _mixture() -> Iterator[Trial]:
    """All experts are chosen: a choice between nearly equal scores is another with other rounding."""
    kinds: tuple[tuple[int, GateKind], ...] = ((1, "silu"), (4, "gelu"), (6, "clamped"))
    for count, gate in kinds:
        layer = mixture(Routing(num_experts=count, num_chosen=count, scale=1.5), 64, 96, gate=Gate(gate))
        yield Trial(f"{count} experts, {gate}, 64 -> 96 -> 64", _call("mixture", (random_table(64),), layer), 64)


def _add_adapters() -> Iterator[Trial]:
    """Of a module of one part, and of three. One adapter has a smaller rank."""
    sizes, adapters = AdapterSizes(num_slots=2, max_rank=20), (MadeAdapter(1, 20), MadeAdapter(2, 3))
    for outputs in ((96,), (64, 32, 40)):
        module, tables = adapted(sizes, 72, *outputs), (random_table(sum(outputs)), random_table(72, seed=2))
        call = _call("add_adapters", tables, module)
        yield Trial(f"72 -> {' + '.join(map(str, outputs))}, rank 20", call, sum(outputs), adapters=adapters)


def _add_table_adapters() -> Iterator[Trial]:
    """Some tokens have no column."""
    for width in WIDTHS:
        module = adapted(AdapterSizes(num_slots=2, max_rank=5), NUM_ROWS - 20, width, is_table=True)
        call = _call("add_table_adapters", (random_table(width),), module, -10)
        yield Trial(f"{width} columns, rank 5", call, width, adapters=(MadeAdapter(1, 5), MadeAdapter(2, 3)))


def _rotary_kv_write() -> Iterator[Trial]:
    for heads, kv_heads, dim in _HEADS:
        for has_norms in (False, True):
            layer, table = _layer(heads, kv_heads, dim, has_norms=has_norms), random_table((heads + 2 * kv_heads) * dim)
            label = f"{heads} heads of {dim}, {kv_heads} KV{', norms' if has_norms else ''}"
            pool = Pool(num_kv_heads=kv_heads, head_dim=dim)
            write = _call("rotary_kv_write", (table,), layer)
            yield Trial(label, partial(_write_and_attend, layer, write), heads * dim, pool)


def _paged_attention() -> Iterator[Trial]:
    for heads, kv_heads, dim in _HEADS:
        for window, softcap, has_sinks in ((None, None, False), (40, None, True), (None, 20.0, False)):
            layer = _layer(heads, kv_heads, dim, window=window, softcap=softcap, has_sinks=has_sinks)
            write = _call("rotary_kv_write", (random_table((heads + 2 * kv_heads) * dim),), layer)
            options = f"{f', window {window}' if window else ''}{f', softcap {softcap:g}' if softcap else ''}"
            options += ", sinks" if has_sinks else ""
            label = f"{heads} heads of {dim}, {kv_heads} KV{options}"
            pool = Pool(num_kv_heads=kv_heads, head_dim=dim)
            yield Trial(label, partial(_attend, layer, write), heads * dim, pool, window)


def _latents() -> Iterator[Trial]:
    """Of both ops: what is written, and the queries, show in what attention gathers."""
    for heads, latent, rotary_dim in _LATENTS:
        layer = _latent_layer(heads, latent, rotary_dim)
        tables = random_table(heads * (latent.key_dim + rotary_dim)), random_table(layer.head_dim, seed=3)
        write = _call("latent_kv_write", tables, layer)
        pairs = "neighbours" if latent.interleaves else "halves"
        label = f"{heads} heads, latents of {latent.rank} + {rotary_dim} in {pairs}"
        pool = Pool(head_dim=layer.head_dim, is_latent=True)
        values = partial(_values, layer, write)
        yield Trial(f"{label}, values of {latent.value_dim}", values, heads * latent.value_dim, pool)


def _values(layer: AttentionLayer, write: Function, ops: Ops) -> Tensor:
    return ops.latent_values(ops.paged_attention(write(ops), layer), layer)


def _latent_layer(heads: int, latent: Latent, rotary_dim: int) -> AttentionLayer:
    width = latent.rank + rotary_dim
    alone = _layer(heads, 1, rotary_dim)
    norm, scale = parameter(1 + _array(latent.rank) / 4), (latent.key_dim + rotary_dim) ** -0.5
    return replace(alone, head_dim=width, scale=scale, k_norm=norm, latent=latent)


def _of_latents(heads: int, rank: int, key_dim: int, value_dim: int, *, interleaves: bool) -> Latent:
    up = parameter(_array(heads * (key_dim + value_dim), rank) / np.float32(rank**0.5))
    return Latent(rank, key_dim, value_dim, up, interleaves)


#: query heads, latents, rotated numbers
_LATENTS = (
    (5, _of_latents(5, 24, 12, 10, interleaves=True), 8),
    (7, _of_latents(7, 128, 32, 48, interleaves=False), 16),
)


def _write_and_attend(layer: AttentionLayer, write: Function, ops: Ops) -> Tensor:
    """The queries, and what was written as attention reads it."""
    q = write(ops)
    return ops.add(ops.paged_attention(q, layer), q)


def _attend(layer: AttentionLayer, write: Function, ops: Ops) -> Tensor:
    return ops.paged_attention(write(ops), layer)


_HEADS = ((4, 2, 64), (6, 1, 128))


def _layer(
    heads: int, kv_heads: int, dim: int, *, has_norms: bool = False, window: int | None = None,
    softcap: float | None = None, has_sinks: bool = False,
) -> AttentionLayer:  # fmt: skip
    angles = np.outer(np.arange(768), 1e4 ** -(np.arange(dim // 2) / (dim // 2))).astype(np.float32)
    norms = [parameter(1 + _array(dim, seed=seed) / 4) if has_norms else None for seed in (1, 2)]
    return AttentionLayer(
        *(0, 0, heads, kv_heads, dim, dim**-0.5, window, softcap),
        q_norm=norms[0],
        k_norm=norms[1],
        rotary=RotaryTable(np.cos(angles), np.sin(angles)),
        sinks=parameter(2 * _array(heads)) if has_sinks else None,
    )


_TRIALS: dict[str, Callable[[], Iterator[Trial]]] = {
    "embedding": _embedding,
    "all_reduce": _all_reduce,
    "linear": _linear,
    "rms_norm": partial(_norm, "rms_norm"),
    "norm_queries_keys": _norm_queries_keys,
    "add_rms_norm": _add_rms_norm,
    "layer_norm": partial(_norm, "layer_norm"),
    "gated_activation": _gated_activation,
    "gate_rows": _gate_rows,
    "mixture": _mixture,
    "add_adapters": _add_adapters,
    "add_table_adapters": _add_table_adapters,
    "rotary_kv_write": _rotary_kv_write,
    "latent_kv_write": _latents,
    "latent_values": _latents,
    "paged_attention": _paged_attention,
}
