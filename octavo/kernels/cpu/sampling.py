"""Sampling in C++: the ctypes face of csrc/cpu/sampling.h."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from octavo.errors import OutOfMemoryError
from octavo.kernels.ops import FloatArray, IntArray, SamplingBatch

#: the C struct's pointers, in its order, and the element type each points to
_COLUMNS: dict[str, type[np.generic]] = {
    "logits_rows": np.int32,
    "temperature": np.float32,
    "top_p": np.float32,
    "top_k": np.int32,
    "min_p": np.float32,
    "presence_penalty": np.float32,
    "frequency_penalty": np.float32,
    "repetition_penalty": np.float32,
    "seeds": np.uint64,
    "sample_indices": np.int32,
    "positions": np.int32,
    "history": np.int32,
    "history_offsets": np.int32,
    "prompt_lens": np.int32,
    "allowed": np.int32,
    "allowed_offsets": np.int32,
    "banned": np.int32,
    "banned_offsets": np.int32,
    "bias_ids": np.int32,
    "bias_values": np.float32,
    "bias_offsets": np.int32,
}
_Pointers = ctypes.c_void_p * len(_COLUMNS)


def sample(library: ctypes.CDLL, pool: ctypes.c_void_p, logits: FloatArray, batch: SamplingBatch) -> IntArray:
    """`CompiledModel.sample`, by the threads of a pool."""
    tokens = np.empty(len(batch.logits_rows), np.int32)
    _call(library.octavo_sample, pool, logits, batch, tokens)
    return tokens


def processed_logits(
    library: ctypes.CDLL, pool: ctypes.c_void_p, logits: FloatArray, batch: SamplingBatch
) -> FloatArray:
    """`CompiledModel.processed_logits`, by the threads of a pool."""
    num_entries = len(batch.logits_rows)
    processed, results = np.empty((num_entries, logits.shape[1]), np.float32), np.empty(num_entries, np.int32)
    _call(library.octavo_processed_logits, pool, logits, batch, processed, results)
    return processed


def _call(
    function: Any, pool: ctypes.c_void_p, logits: FloatArray, batch: SamplingBatch, *out: np.ndarray[Any, Any]
) -> None:
    """Call one of the library's two. The last of `out` is what became of each entry."""
    num_rows, vocab_size = logits.shape
    num_entries = len(batch.logits_rows)
    assert num_entries == 0 or 0 <= batch.logits_rows.min() <= batch.logits_rows.max() < num_rows, (
        f"entries read rows of logits that are not among the {num_rows} given"
    )
    logits = np.ascontiguousarray(logits, np.float32)
    columns = [np.ascontiguousarray(getattr(batch, name), dtype) for name, dtype in _COLUMNS.items()]
    pointers = _Pointers(*(column.ctypes.data for column in columns))
    code = function(
        *(pool, _address(logits), ctypes.c_int64(vocab_size), pointers, ctypes.c_int64(num_entries)),
        *map(_address, out),
    )
    if code != 0:
        raise OutOfMemoryError(f"drawing {num_entries} tokens of {vocab_size} found no memory; lower max_num_seqs")
    assert num_entries == 0 or out[-1].min() >= -1, (
        "an entry bans, biases, allows or remembers a token not in the model, or its parameters are not numbers"
    )


def _address(array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
