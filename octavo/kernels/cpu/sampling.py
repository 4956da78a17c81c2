"""Sampling in C++: the ctypes face of csrc/cpu/sampling.h."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from octavo.errors import OutOfMemoryError
from octavo.kernels.ops import FloatArray, IntArray
from octavo.sampling.columns import COLUMNS, SamplingBatch

_TYPES: dict[str, type[np.generic]] = {"int32_t": np.int32, "uint64_t": np.uint64, "float": np.float32}


def sample(library: ctypes.CDLL, pool: ctypes.c_void_p, logits: FloatArray, batch: SamplingBatch) -> IntArray:
    """`CompiledModel.sample`, by the threads of a pool."""
    tokens = np.empty(len(batch.logits_rows), np.int32)
    _call(library, "octavo_sample", pool, logits, batch, tokens)
    return tokens


def processed_logits(
    library: ctypes.CDLL, pool: ctypes.c_void_p, logits: FloatArray, batch: SamplingBatch
) -> FloatArray:
    """`CompiledModel.processed_logits`, by the threads of a pool."""
    num_entries = len(batch.logits_rows)
    processed, results = np.empty((num_entries, logits.shape[1]), np.float32), np.empty(num_entries, np.int32)
    _call(library, "octavo_processed_logits", pool, logits, batch, processed, results)
    return processed


def _call(
    library: ctypes.CDLL,
    name: str,
    pool: ctypes.c_void_p,
    logits: FloatArray,
    batch: SamplingBatch,
    *out: FloatArray | IntArray,
) -> None:
    """Call one of the library's two. The last of `out` is what became of each entry."""
    num_rows, vocab_size = logits.shape
    num_entries = len(batch.logits_rows)
    assert num_entries == 0 or 0 <= batch.logits_rows.min() <= batch.logits_rows.max() < num_rows, (
        f"entries read rows of logits that are not among the {num_rows} given"
    )
    logits = np.ascontiguousarray(logits, np.float32)
    columns = [np.ascontiguousarray(getattr(batch, column), dtype) for column, dtype in struct_columns(library)]
    pointers = (ctypes.c_void_p * len(columns))(*(column.ctypes.data for column in columns))
    code = getattr(library, name)(
        *(pool, _address(logits), ctypes.c_int64(vocab_size), pointers, ctypes.c_int64(num_entries)),
        *map(_address, out),
    )
    if code != 0:
        raise OutOfMemoryError(f"drawing {num_entries} tokens of {vocab_size} found no memory; lower max_num_seqs")
    assert num_entries == 0 or out[-1].min() >= -1, (
        "an entry bans, biases, allows or remembers a token not in the model, or its parameters are not numbers"
    )


@cache
def struct_columns(library: ctypes.CDLL) -> tuple[tuple[str, type[np.generic]], ...]:
    """The C struct's pointers, in its order, as the library itself states them, and what each points to."""
    library.octavo_sampling_columns.restype = ctypes.c_char_p
    stated = [line.split() for line in library.octavo_sampling_columns().decode().splitlines()]
    columns = {name: _TYPES[kind] for kind, name in stated}
    assert columns == COLUMNS, (
        f"csrc/cpu/sampling.h and sampling/columns.py differ in {columns.items() ^ COLUMNS.items()}"
    )
    return tuple(columns.items())


def _address(array: FloatArray | IntArray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
