"""The join of decode attention, by the GPU's own source on the CPU, against float64 over random partial results.

`csrc/cuda/attention_join.cuh` is plain C++ except for thread indices and barriers; `join_on_cpu/attention_kind.cuh`
stands for what it includes.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from octavo.kernels.build.build import find_sources
from tests.kernels.kept_library import compiled_beside

HERE = Path(__file__).parent / "join_on_cpu"


@pytest.mark.parametrize(("dim", "group", "queries"), [(128, 4, 1), (64, 2, 3), (96, 1, 1), (256, 8, 2)])
def test_random_partial_results(dim: int, group: int, queries: int) -> None:
    macros = (f"-DHEAD_DIM={dim}", f"-DGROUP={group}", f"-DTILE_QUERIES={queries}")
    flags = ("-std=c++20", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas", *macros)
    library = compiled_beside("check_join.cpp", [HERE, find_sources() / "cuda"], flags)
    check = ctypes.CDLL(str(library)).octavo_check_joins
    check.restype = ctypes.c_char_p
    assert check(100, dim) == b""
