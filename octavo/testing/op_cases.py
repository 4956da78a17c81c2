"""The shapes at which `octavo kernels bench` measures an op, with the work of each: bytes moved and FLOP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from octavo.kernels.adapters import AdapterSizes
from octavo.kernels.attention_layer import AttentionLayer, RotaryTable
from octavo.kernels.kv_layout import KVDType
from octavo.kernels.latent import Latent
from octavo.kernels.mixture import Routing
from octavo.kernels.ops import OPS, Ops, Tensor
from octavo.testing.made_parameters import MadeAdapter, adapted, linear, mixture, parameter
from octavo.testing.op_trials import elementwise_arguments

LAYERS = 8
TABLE_ROWS = 64  # of the tables that inputs are looked up in
_ROUTING = Routing(num_experts=8, num_chosen=2)
_ADAPTED, _NUM_ADAPTERS, _RANK = ("add_adapters", "add_table_adapters"), 8, 16


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
    beside: what a call does beside it. latent_dim: of the keys in the pool, if they are latents. adapters: of the
    tokens in turn."""

    label: str
    step: tuple[int, int, int]
    inputs: tuple[int, ...]
    call: Call
    num_bytes: int
    num_flops: float = 0.0
    beside: Call | None = None
    latent_dim: int = 0
    adapters: tuple[MadeAdapter, ...] = ()


def cases(name: str, sizes: Sizes) -> Iterator[Case]:
    if name in ("paged_attention", "rotary_kv_write"):
        yield from _attention(name, sizes)
        return
    if name in ("latent_kv_write", "latent_values"):
        yield from _latents(name, sizes)
        return
    element = 4 if sizes.dtype == "float32" else 2
    width = sizes.width
    in_widths, out_width = _widths(name, width)
    given = _arguments(name, sizes)
    for tokens in sizes.tokens:
        flops, weights = _work(name, tokens, width)
        read = width if name == "embedding" else sum(in_widths)
        num_bytes = element * (tokens * (read + out_width) + weights)
        label, adapters = f"{tokens} x {width}", tuple[MadeAdapter, ...]()
        if name in _ADAPTED:
            label += f", {_NUM_ADAPTERS} adapters of rank {_RANK}"
            adapters = tuple(MadeAdapter(slot, _RANK) for slot in range(_NUM_ADAPTERS))
        call = partial(_call, name, given)
        yield Case(label, (1, 0, tokens), in_widths, call, num_bytes, flops, adapters=adapters)


def _work(name: str, tokens: int, width: int) -> tuple[float, int]:
    """FLOP and weights read. An expert is read once, if any token chooses it."""
    if name == "linear":
        return 2.0 * tokens * width * width, width * width
    if name in _ADAPTED:
        return 4.0 * tokens * width * _RANK, 2 * min(tokens, _NUM_ADAPTERS) * width * _RANK
    if name == "mixture":
        each, chosen = 3 * width * _inner(width), tokens * _ROUTING.num_chosen
        return 2.0 * chosen * each, min(chosen, _ROUTING.num_experts) * each
    return 0.0, 0


def _widths(name: str, width: int) -> tuple[tuple[int, ...], int]:
    """Of the inputs, and of all results together."""
    inputs = {"gated_activation": (2 * width,), "gate_rows": (width, 1)}.get(name, (width,) * len(OPS[name].inputs))
    return inputs, 2 * width if name == "add_rms_norm" else width


def _arguments(name: str, sizes: Sizes) -> Sequence[tuple[Any, ...]]:
    """Of each layer's call."""
    width = sizes.width
    if OPS[name].is_elementwise:
        return [tuple(next(elementwise_arguments(OPS[name])).values())] * LAYERS
    if name in _ADAPTED:
        slots, is_table = AdapterSizes(_NUM_ADAPTERS, _RANK), name == "add_table_adapters"
        return [(adapted(slots, width, width, is_table=is_table), *([0] if is_table else [])) for _ in range(LAYERS)]
    if name in ("all_reduce", "gate_rows"):
        return [()] * LAYERS
    if name == "mixture":
        return [(mixture(_ROUTING, width, _inner(width), seed=layer),) for layer in range(LAYERS)]
    if name == "gated_activation":
        return [("silu",)] * LAYERS
    if name == "linear":
        weight = np.random.default_rng(0).standard_normal((width, width), np.float32)
        return [(linear(weight),) for _ in range(LAYERS)]
    if name == "embedding":
        table = parameter(np.random.default_rng(0).standard_normal((16 * TABLE_ROWS, width), np.float32))
        return [(table, "input_ids")] * LAYERS
    ones = parameter(np.ones(width, np.float32))
    if name == "norm_queries_keys":
        halves = [parameter(np.ones(width // 2, np.float32))] * 2
        return [(*halves, width // 2, width // 2, 1e-5)] * LAYERS
    between = (None,) if name == "layer_norm" else ()
    return [(ones, *between, 1e-5)] * LAYERS


def _inner(width: int) -> int:
    """Of an expert."""
    return width // 8


def _call(name: str, given: Sequence[tuple[Any, ...]], ops: Ops, inputs: Sequence[Tensor], layer: int) -> Any:
    return getattr(ops, name)(*inputs, *given[layer])


def _latents(name: str, sizes: Sizes) -> Iterator[Case]:
    """In the proportions of DeepSeek's."""
    heads, _, dim = sizes.heads
    rank, rotary_dim = 4 * dim, dim // 2
    width, queries, matrix = rank + rotary_dim, heads * (dim + rotary_dim), heads * dim * rank
    norm, rotary = parameter(np.ones(rank, np.float32)), _rotary(sizes, rotary_dim)
    ups = [np.random.default_rng(i).standard_normal((2 * heads * dim, rank), np.float32) for i in range(LAYERS)]
    latents = [Latent(rank, dim, dim, parameter(up)) for up in ups]
    layers = [
        AttentionLayer(0, i, heads, 1, width, dim**-0.5, k_norm=norm, rotary=rotary, latent=latent)
        for i, latent in enumerate(latents)
    ]
    activation, element = (4 if sizes.dtype == "float32" else 2), 4 if sizes.kv_dtype == "float32" else 2
    for step in sizes.steps:
        tokens = step[0] * step[2]
        label, flops = f"{step[0]} x {step[2]} new, {heads} heads, latents of {rank}", 2.0 * tokens * matrix
        if name == "latent_values":
            num_bytes = activation * (tokens * heads * (rank + dim) + matrix)
            call = partial(_values, layers)
            yield Case(label, step, (heads * rank,), call, num_bytes, flops, latent_dim=width)
        else:
            num_bytes = activation * (tokens * (queries + width + heads * width) + matrix) + element * tokens * width
            inputs, beside = (heads * width, queries, width), partial(_attend, layers)
            yield Case(label, step, inputs, partial(_write_latent, layers), num_bytes, flops, beside, width)


def _rotary(sizes: Sizes, dim: int) -> RotaryTable:
    angles = np.outer(np.arange(_max_len(sizes)), 1e4 ** -(np.arange(dim // 2) / (dim // 2))).astype(np.float32)
    return RotaryTable(np.cos(angles), np.sin(angles))


def _attention(name: str, sizes: Sizes) -> Iterator[Case]:
    heads, kv_heads, dim = sizes.heads
    rotary = _rotary(sizes, dim)
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


def _values(layers: Sequence[AttentionLayer], ops: Ops, inputs: Sequence[Tensor], layer: int) -> Tensor:
    return ops.latent_values(inputs[0], layers[layer])


def _write_latent(layers: Sequence[AttentionLayer], ops: Ops, inputs: Sequence[Tensor], layer: int) -> Tensor:
    ops.latent_kv_write(inputs[1], inputs[2], layers[layer])
    return _attend(layers, ops, inputs, layer)


def _write(layers: Sequence[AttentionLayer], ops: Ops, inputs: Sequence[Tensor], layer: int) -> Tensor:
    """Beside attention, for which a GPU's step plans the slots that are written."""
    ops.rotary_kv_write(inputs[1], layers[layer])
    return _attend(layers, ops, inputs, layer)
