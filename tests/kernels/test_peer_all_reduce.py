"""The exchange of packets in all_reduce.cu, by the GPU's own source on the CPU, with threads for ranks.

`csrc/cuda/all_reduce.cuh` is plain C++ except for a few instructions; `all_reduce_on_cpu/ptx.cuh` stands for these.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from octavo.kernels.build.build import find_sources
from tests.kernels.kept_library import compiled_beside

HERE = Path(__file__).parent / "all_reduce_on_cpu"


@pytest.mark.parametrize(("ranks", "element"), [(2, "Bf16"), (3, "float"), (8, "Bf16")])
def test_many_calls_of_ranks_that_do_not_wait_for_each_other(ranks: int, element: str) -> None:
    """Messages of all sizes, whole and split, with NaNs whose bits mean an empty slot."""
    flags = ("-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-Wno-unknown-pragmas")
    macros = (f"-DRANKS={ranks}", f"-DELEMENT={element}")
    library = compiled_beside("check_all_reduce.cpp", [HERE, find_sources() / "cuda"], [*flags, *macros])
    check = ctypes.CDLL(str(library)).octavo_check_all_reduce
    check.restype = ctypes.c_char_p
    assert check(400 if ranks < 8 else 60, ranks) == b""
