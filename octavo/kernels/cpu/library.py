"""The C interface of csrc/bindings/ in ctypes: structs, signatures, errors, and the calls that draw tokens."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, Structure, Union, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import OctavoError, OutOfMemoryError, UnsupportedModelError
from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.build import build
from octavo.sampling.columns import COLUMNS, SamplingBatch


class Slot(Structure):
    """A tensor's place: its buffer, the number of columns, and the floats from one row to the next."""

    _fields_ = (("buffer", c_int32), ("width", c_int32), ("stride", c_int32))


class KVPool(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("num_blocks", c_int64),
        ("block_size", c_int64),
        ("block_bytes", c_int64),
        ("type", c_int32),
        ("calibrated_max", c_float),
    )


class StepView(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("num_tokens", "num_seqs", "num_groups")),
        *((name, c_void_p) for name in ("input_ids", "positions", "query_start_loc", "seq_lens", "rows")),
        ("block_tables", POINTER(c_void_p)),
        ("table_strides", POINTER(c_int64)),
        ("token_seqs", c_void_p),
        ("hidden_states", c_void_p),
        ("token_types", c_void_p),
        ("adapters", c_void_p),
    )


class LayerSpec(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("group", "offset", "num_heads", "num_kv_heads", "head_dim")),
        ("scale", c_float),
        *((name, c_int64) for name in ("window", "is_causal")),
        ("softcap", c_float),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("norm_eps", c_float),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("rotary_dim", c_int64),
        ("k_scales", c_void_p),
        ("v_scales", c_void_p),
        ("sinks", c_void_p),
        ("bias", c_void_p),
        ("bias_reach", c_int64),
        ("latent_rank", c_int64),
        ("interleaves", c_int64),
    )


class MixtureSpec(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("num_experts", "num_chosen", "num_groups", "top_groups")),
        *((name, c_int32) for name in ("scoring", "group_score", "renormalises")),
        ("scale", c_float),
        ("bias", c_void_p),
        ("gate", c_int32),
        ("alpha", c_float),
        ("limit", c_float),
        *((name, c_int64) for name in ("hidden_size", "inner_size", "first_expert", "num_own")),
        ("loads", c_void_p),
        ("places", c_void_p),
        ("place_width", c_int64),
    )


class AdapterSpec(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("num_slots", "num_parts", "max_rank", "in_features", "out_features")),
        *((name, c_void_p) for name in ("ends", "ranks", "a", "b")),
    )


class Argument(Union):
    """A parameter of an op: a number or an address."""

    _fields_ = (("whole", c_int64), ("real", c_float), ("address", c_void_p))


Arguments = Argument * 8


#: adds up an array of floats over all ranks; not 0: it failed
AllReduceCall = CFUNCTYPE(c_int, c_void_p, c_int64)

_POINTER = c_void_p  # an object of the library, or an array
Signatures = dict[str, tuple[Any, tuple[Any, ...]]]  # function -> result, arguments
_SIGNATURES: Signatures = {
    "octavo_last_error": (c_char_p, ()),
    "octavo_pool_new": (_POINTER, (c_int,)),
    "octavo_pool_free": (None, (_POINTER,)),
    "octavo_model_new": (_POINTER, (_POINTER, POINTER(KVPool))),
    "octavo_model_bind": (None, (_POINTER, _POINTER, c_int64)),
    "octavo_model_calibrate": (None, (_POINTER, c_float)),
    "octavo_model_join_ranks": (None, (_POINTER, AllReduceCall)),
    "octavo_model_free": (None, (_POINTER,)),
    "octavo_model_forward_program": (_POINTER, (_POINTER, _POINTER, c_int64)),
    "octavo_model_head_program": (_POINTER, (_POINTER, _POINTER, c_int64)),
    "octavo_model_join": (None, (_POINTER, POINTER(Slot), POINTER(Slot), c_int64, Slot)),
    "octavo_model_take_hidden": (None, (_POINTER, Slot)),
    "octavo_model_forward": (c_int, (_POINTER, POINTER(StepView))),
    "octavo_model_logits": (c_int, (_POINTER, _POINTER, c_int64, _POINTER)),
    "octavo_model_begin_forward": (c_int, (_POINTER, POINTER(StepView))),
    "octavo_model_begin_logits": (c_int, (_POINTER, _POINTER, c_int64, _POINTER)),
    "octavo_program_run": (c_int, (_POINTER, c_int64, c_int64, c_int64)),
    "octavo_program_data": (POINTER(c_float), (_POINTER, Slot)),
    "octavo_model_copy_blocks": (None, (_POINTER, _POINTER, _POINTER, c_int64)),
    "octavo_model_packed_bytes": (c_int64, (_POINTER,)),
    "octavo_model_step_bytes": (None, (_POINTER, POINTER(c_int64), POINTER(c_int64))),
    "octavo_matrix_sizes": (
        c_int,
        (c_int32, c_int64, c_int64, c_int, c_int64, POINTER(c_int64), POINTER(c_int64)),
    ),
    "octavo_model_measure": (None, (_POINTER, c_int)),
    "octavo_top_logprobs": (
        c_int,
        (_POINTER, _POINTER, c_int64, c_int64, _POINTER, c_int64, c_int32, _POINTER, _POINTER, _POINTER),
    ),
    "octavo_convert": (c_int, (_POINTER, c_int32, _POINTER, c_int64, c_int64, c_int64, c_int32, _POINTER)),
    "octavo_program_append": (c_int, (_POINTER, c_char_p, POINTER(Slot), c_int64, POINTER(Arguments))),
    "octavo_program_append_linear": (
        c_int,
        (_POINTER, _POINTER, c_int32, _POINTER, c_int64, c_int64, c_int32, _POINTER, Slot, Slot, c_int64),
    ),
    "octavo_program_append_head_products": (
        c_int,
        (_POINTER, _POINTER, c_int32, _POINTER, *(c_int64,) * 6, Slot, Slot),
    ),
    "octavo_program_new_mixture": (_POINTER, (_POINTER, POINTER(MixtureSpec))),
    "octavo_mixture_pack": (
        c_int,
        (_POINTER, _POINTER, c_int32, c_int64, c_int32, _POINTER, c_int64, c_int64, c_int32, _POINTER),
    ),
    "octavo_mixture_weight": (_POINTER, (_POINTER, c_int32, c_int64, c_int64, POINTER(c_int64))),
    "octavo_program_append_mixture": (c_int, (_POINTER, _POINTER, Slot, Slot)),
    "octavo_mixture_row_bytes": (c_int64, (POINTER(MixtureSpec), c_int64)),
    "octavo_program_times": (None, (_POINTER, POINTER(c_double), POINTER(c_int64))),
}
#: of csrc/bindings/sampling.cpp
SAMPLING_SIGNATURES: Signatures = {
    "octavo_sampling_columns": (c_char_p, ()),
    "octavo_sample": (c_int, (_POINTER, _POINTER, c_int64, POINTER(c_void_p), c_int64, _POINTER)),
    "octavo_processed_logits": (c_int, (_POINTER, _POINTER, c_int64, POINTER(c_void_p), c_int64, _POINTER, _POINTER)),
}
_COLUMN_TYPES: dict[str, type[np.generic]] = {"int32_t": np.int32, "uint64_t": np.uint64, "float": np.float32}


def declare(library: ctypes.CDLL, signatures: Signatures) -> None:
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


@cache
def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    declare(library, _SIGNATURES)
    declare(library, SAMPLING_SIGNATURES)
    return library


def load() -> ctypes.CDLL:
    """The built library with its signatures declared."""
    return _declared(build.load())


def check(library: ctypes.CDLL, code: int, doing: str) -> None:
    """Raise the error that a call's return code stands for; 0 is success."""
    if code == 0:
        return
    message = f"{doing}: {library.octavo_last_error().decode()}"
    kinds: dict[int, type[OctavoError]] = {1: OutOfMemoryError, 2: UnsupportedModelError}
    raise kinds.get(code, AssertionError)(message)


def address(array: NDArray[Any]) -> int:
    """The address of a contiguous array's first element. The caller must keep the array alive."""
    assert array.flags.c_contiguous, "the kernels read contiguous arrays"
    return int(array.__array_interface__["data"][0])


def int32_address(array: NDArray[np.int32]) -> int:
    assert array.dtype == np.int32, f"the kernels read int32, got {array.dtype}"
    return address(array)


class ThreadPool:
    """The kernels' threads, which end with this object."""

    def __init__(self, library: ctypes.CDLL, num_threads: int) -> None:
        self._library = library
        self.handle = c_void_p(library.octavo_pool_new(num_threads))
        check(library, 0 if self.handle else 1, f"starting {num_threads} threads")

    def __del__(self) -> None:
        if handle := self.__dict__.pop("handle", None):
            self._library.octavo_pool_free(handle)


def sample(library: ctypes.CDLL, pool: c_void_p, logits: FloatArray, batch: SamplingBatch) -> IntArray:
    """`CompiledModel.sample`, on the threads of a pool."""
    tokens = np.empty(len(batch.logits_rows), np.int32)
    _draw(library, library.octavo_sample, pool, logits, batch, tokens)
    return tokens


def processed_logits(library: ctypes.CDLL, pool: c_void_p, logits: FloatArray, batch: SamplingBatch) -> FloatArray:
    """`CompiledModel.processed_logits`, on the threads of a pool."""
    num_entries = len(batch.logits_rows)
    processed, results = np.empty((num_entries, logits.shape[1]), np.float32), np.empty(num_entries, np.int32)
    _draw(library, library.octavo_processed_logits, pool, logits, batch, processed, results)
    return processed


def _draw(
    library: ctypes.CDLL,
    function: Any,
    pool: c_void_p,
    logits: FloatArray,
    batch: SamplingBatch,
    *out: FloatArray | IntArray,
) -> None:
    """Call one of the two functions that read a SamplingBatch. The last of `out` is each entry's token, or below -1
    for an entry that is not valid."""
    num_rows, vocab_size = logits.shape
    num_entries = len(batch.logits_rows)
    assert num_entries == 0 or 0 <= batch.logits_rows.min() <= batch.logits_rows.max() < num_rows, (
        f"entries read rows of logits that are not among the {num_rows} given"
    )
    logits = np.ascontiguousarray(logits, np.float32)
    columns = [np.ascontiguousarray(getattr(batch, column), dtype) for column, dtype in struct_columns(library)]
    pointers = (c_void_p * len(columns))(*(column.ctypes.data for column in columns))
    code = function(pool, address(logits), vocab_size, pointers, num_entries, *map(address, out))
    if code != 0:
        raise OutOfMemoryError(f"drawing {num_entries} tokens of {vocab_size} found no memory; lower max_num_seqs")
    assert num_entries == 0 or out[-1].min() >= -1, (
        "an entry bans, biases, allows or remembers a token not in the model, or its parameters are not numbers"
    )


@cache
def struct_columns(library: ctypes.CDLL) -> tuple[tuple[str, type[np.generic]], ...]:
    """The pointers of the C struct SamplingBatch in its order, as the library lists them, and their element types."""
    lines = [line.split() for line in library.octavo_sampling_columns().decode().splitlines()]
    columns = {name: _COLUMN_TYPES[kind] for kind, name in lines}
    assert columns == COLUMNS, (
        f"csrc/cpu/sampling.h and sampling/columns.py differ in {columns.items() ^ COLUMNS.items()}"
    )
    return tuple(columns.items())
