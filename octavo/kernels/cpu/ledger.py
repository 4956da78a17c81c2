"""What a model takes in the host's memory with the cpu backend, beside KV blocks, before it is loaded.

The kernel library tells what it would pack, so that its layouts are known in one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ctypes import CDLL, byref, c_int64
from itertools import groupby
from math import prod

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cpu.blocks import held_dtype
from octavo.kernels.cpu.latent import held_dtype as held_up
from octavo.kernels.cpu.latent import matrix_shapes
from octavo.kernels.cpu.mixture import mixture_spec
from octavo.kernels.device import StepLimits
from octavo.kernels.host_device import host_rows
from octavo.kernels.kv_layout import KVLayout
from octavo.kernels.latent import Latent
from octavo.kernels.ledger import Contents, Entry, Ledger, row_bytes
from octavo.kernels.mixture import Mixture
from octavo.kernels.parameters import Linear
from octavo.kernels.program.model_recording import ModelRecording
from octavo.kernels.tensor import DTYPES, DType, num_bytes

_PARTITION, _TILE_ROWS = 128, 48  # of csrc/cpu/attention.cpp
_MIXTURE_TOKENS = 512  # of csrc/cpu/mixture.h
_HEAD_PRODUCT_BYTES = 4 << 20  # of csrc/cpu/latent.cpp


class CpuLedger:
    """activation_bytes: see `CpuDevice`."""

    def __init__(self, library: CDLL, activation_bytes: int, num_threads: int) -> None:
        self._library, self._activation_bytes, self._num_threads = library, activation_bytes, num_threads

    def of(self, model: ModelRecording, kv: KVLayout, limits: StepLimits) -> Ledger:
        tokens, seqs = limits.max_num_tokens, limits.max_num_seqs
        contents = Contents.of((model.body, model.head))
        packed = [self._sizes(linear, 1)[0] for linear in contents.linears.values()]
        held = [num_bytes(table.sources[0].dtype, table.shape) for table in contents.tables.values()]
        vectors = [vector.shape for vector in contents.vectors.values()]
        vectors += [bias.shape for linear in contents.linears.values() for bias in linear.biases]
        small = 4 * sum(map(prod, vectors)) + contents.rotary_bytes(limits.max_model_len)
        return Ledger(
            (
                Entry("weights", sum(packed), f"{len(packed):,} packed matrices"),
                Entry("weights", sum(held), "embeddings as in the file"),
                Entry("weights", small, "norms and angles in float32"),
                *contents.adapter_entries(4),
                Entry("activations", row_bytes(model.body) * tokens, f"a step of {tokens:,} tokens in float32"),
                Entry("activations", row_bytes(model.head) * seqs, f"logits of {seqs:,} sequences"),
                *self._latents(contents),
                Entry("workspace", self._products(model, limits, contents), "products"),
                *self._mixtures(contents, tokens),
                *contents.moving_entries(self._expert_bytes),
                Entry("workspace", self._num_threads * _attention_bytes(model.body.layers), "attention"),
                host_rows(kv, limits),
            )
        )

    def _products(self, model: ModelRecording, limits: StepLimits, contents: Contents) -> int:
        """Of the product that takes most; they run one after another. Those of heads run together if they are small."""
        rows = ((model.body, limits.max_num_tokens), (model.head, limits.max_num_seqs))
        linears = [(linear, count) for part, count in rows for linear in Contents.of([part]).linears.values()]
        most = max(self._sizes(*one)[1] for one in linears)
        for latent in contents.latents.values():
            each = [self._head_sizes(latent, *shape, limits.max_num_tokens)[1] for shape in matrix_shapes(latent)]
            most = max(most, *each, min(_HEAD_PRODUCT_BYTES, latent.num_heads * max(each)))
        return most

    def _latents(self, contents: Contents) -> Iterator[Entry]:
        """The matrices of each head."""
        total = 0
        for latent in contents.latents.values():
            total += latent.num_heads * sum(self._head_sizes(latent, *shape, 1)[0] for shape in matrix_shapes(latent))
        if total:
            yield Entry("weights", total, "matrices of latents")

    def _head_sizes(self, latent: Latent, rows: int, cols: int, num_tokens: int) -> tuple[int, int]:
        """As `_sizes`, of one head's matrix."""
        packed, scratch = c_int64(), c_int64()
        shape = DTYPES.index(held_up(latent.up)), rows, cols, self._activation_bytes, num_tokens
        self._library.octavo_matrix_sizes(*shape, byref(packed), byref(scratch))
        return packed.value, scratch.value

    def _mixtures(self, contents: Contents, num_tokens: int) -> Iterator[Entry]:
        """Of the largest mixture: rows by expert, and their tiles. An expert may have all tokens, or each few."""
        largest = 0
        for layer in contents.mixtures.values():
            rows = self._library.octavo_mixture_row_bytes(byref(mixture_spec(layer)), num_tokens)
            largest = max(largest, rows + self._tiles(layer, min(num_tokens, _MIXTURE_TOKENS)))
        if largest:
            yield Entry("workspace", largest, "experts")

    def _expert_bytes(self, layer: Mixture) -> int:
        one = layer.gate_up.experts[0], layer.down.experts[0]
        biases = 4 * sum(bias.shape[0] for linear in one for bias in linear.biases)
        return biases + sum(self._sizes(linear, 1)[0] for linear in one)

    def _tiles(self, layer: Mixture, num_tokens: int) -> int:
        """At most one tile that is not full for each expert with rows."""
        num_rows = num_tokens * layer.routing.num_chosen
        linears = layer.gate_up.experts[0], layer.down.experts[0]
        most = 0
        for linear in linears:
            one, all_rows = self._sizes(linear, 1)[1], self._sizes(linear, num_rows)[1]
            most = max(most, all_rows + min(num_rows, layer.num_own) * one)
        return most * max(len(list(_matrices(linear))) for linear in linears)

    def _sizes(self, linear: Linear, num_tokens: int) -> tuple[int, int]:
        """Bytes when packed, and of scratch memory for this many tokens."""
        packed = scratch = 0
        for dtype, rows in _matrices(linear):
            each = c_int64(), c_int64()
            shape = (rows, linear.in_features, self._activation_bytes, num_tokens)
            if self._library.octavo_matrix_sizes(DTYPES.index(dtype), *shape, *map(byref, each)):
                packed, scratch = packed + each[0].value, max(scratch, each[1].value)
        return packed, scratch


def _matrices(linear: Linear) -> Iterator[tuple[DType, int]]:
    """The type and the rows of each matrix that `CpuWeights.matrices` makes of a linear layer."""
    for dtype, parts in groupby(linear.parts, key=held_dtype):
        yield dtype, sum(part.shape[0] for part in parts)


def _attention_bytes(layers: Iterable[AttentionLayer]) -> int:
    """A thread's working set for the largest tile."""

    def floats(layer: AttentionLayer) -> int:
        rows, dim = max(_TILE_ROWS, layer.num_heads // layer.num_kv_heads), layer.head_dim
        return rows * dim + rows * _PARTITION + 2 * _PARTITION * dim + 2 * rows * (layer.value_dim + 2)

    return 4 * max(map(floats, layers), default=0)
