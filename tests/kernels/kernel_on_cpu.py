"""A GPU's kernel on the CPU, for its launcher: `block_on_cpu/ptx.cuh` has its threads take turns."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from ctypes import c_char, c_int64, c_void_p
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from octavo.kernels.build.build import find_sources  # noqa: E402
from octavo.kernels.cuda.driver import GPU  # noqa: E402
from octavo.kernels.cuda.plain_codes import PlainCodes  # noqa: E402
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight  # noqa: E402
from octavo.kernels.reference.scaled import dequantize_scaled  # noqa: E402
from octavo.kernels.scaled import ScaledFormat  # noqa: E402
from tests.gpu.quantized_matrix import random_matrix  # noqa: E402
from tests.kernels.kept_library import alone, compiler, kept_library, with_includes  # noqa: E402

HERE = Path(__file__).parent / "block_on_cpu"
FEW_BLOCKS = GPU("a CPU", (9, 0), 1 << 34, 3)
INCLUDED_BY_ALL = "exchange.cuh"  # with all that it includes
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-shared", "-w", "-fsanitize=alignment", "-fno-sanitize-recover=alignment"]


class Boxes(ctypes.Structure):
    """What a driver's TensorMap tells the copy engine, as `block_on_cpu/fp8_products.cuh` reads it."""

    _fields_ = (
        ("data", c_void_p),
        *((name, c_int64 * 4) for name in ("dims", "strides", "box")),
        ("swizzle", c_int64),
        ("rest", c_char * 16),
    )

    @classmethod
    def of_stack(
        cls, address: int, shape: tuple[int, int, int], *, box_rows: int, box_spans: int, box_matrices: int
    ) -> Boxes:
        matrices, num_rows, dim = shape
        box = (128, box_rows, box_spans, box_matrices)
        return cls(address, (128, num_rows, -(-dim // 128), matrices), (1, dim, 128, dim * num_rows), box, 128)

    @classmethod
    def of_rows(cls, address: int, num_rows: int, dim: int, *, is_half: bool, box_rows: int, box_dim: int) -> Boxes:
        return cls(address, (dim * 2, num_rows, 1, 1), (2, dim * 2, 0, 0), (box_dim * 2, box_rows, 1, 1), 128)

    @classmethod
    def of_words(cls, address: int, num_rows: int, dim: int, *, box_rows: int, box_dim: int) -> Boxes:
        return cls(address, (dim * 4, num_rows, 1, 1), (4, dim * 4, 0, 0), (box_dim * 4, box_rows, 1, 1))

    @classmethod
    def of_lines(cls, address: int, num_rows: int, dim: int, *, box_rows: int, box_lines: int) -> Boxes:
        return cls(address, (128, dim // 128, num_rows, 1), (1, 128, dim, 0), (128, box_lines, box_rows, 1), 128)

    @classmethod
    def of_panels(cls, address: int, num_rows: int, dim: int, *, box_rows: int, box_panels: int) -> Boxes:
        dims, strides = (64, num_rows, dim // 64, 1), (1, dim, 64, 0)
        return cls(address, dims, strides, (64, box_rows, box_panels, 1), 64)

    @classmethod
    def of_units(cls, address: int, num_rows: int, dim: int, *, box_rows: int, box_dim: int) -> Boxes:
        return cls(address, (dim, num_rows, 1, 1), (1, dim, 0, 0), (box_dim, box_rows, 1, 1), 128)


def run_on_cpu(
    kernel: ModuleType, folder: Path, patch: pytest.MonkeyPatch, *, compiled_by: ModuleType | None = None
) -> None:
    """Have the launcher in `kernel` launch on the CPU. folder: the test's own. compiled_by: the module that compiles
    the kernel, if that is another."""
    command = compiler().command

    def compile_here(name: str, macros: dict[str, str | int], capability: tuple[int, int]) -> bytes:
        defined = [f"-D{macro}={value}" for macro, value in macros.items()]
        return str(_compiled(f"run_{name}.cpp", [*command, *FLAGS, *defined], folder)).encode()

    class OnCpu:
        def __init__(self, library: bytes, name: str) -> None:
            self._run = getattr(ctypes.CDLL(library.decode()), f"{name}_on_cpu")
            self._run.restype = ctypes.c_bool

        def number(self, name: str) -> int:
            return 0

        def allow_shared(self, num_bytes: int) -> None: ...

        def prefer_shared(self) -> None: ...

        def take_shared(self) -> int:
            return 0

        def launch(
            self, grid: int, block: int, arguments: tuple[ctypes.Structure, ...], *, shared_bytes: int, **how: object
        ) -> None:
            assert shared_bytes <= 227 << 10
            assert self._run(grid, block, *map(ctypes.byref, arguments)), "its threads wait for each other for ever"

    patch.setattr(compiled_by or kernel, "compile_kernel", compile_here)
    patch.setattr(kernel, "Kernel", OnCpu)
    patch.setattr(kernel, "TensorMap", Boxes, raising=False)
    patch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))


def _compiled(source: str, command: list[str], own: Path) -> Path:
    """The library of a source, compiled once for all tests, for all workers of pytest-xdist, and until it changes."""
    session = own.parents[1 if "PYTEST_XDIST_WORKER" in os.environ else 0]
    folder = session / "block_on_cpu"

    def compile_to(library: Path) -> None:
        with alone(session / "block_on_cpu.lock"):
            if not folder.exists():
                _gather(folder, command)
        included = ["-include", str(folder / INCLUDED_BY_ALL)]
        subprocess.run([*command, *included, str(folder / source), "-o", str(library)], check=True)

    return kept_library(command, with_includes([source, INCLUDED_BY_ALL], [HERE, find_sources() / "cuda"]), compile_to)


def _gather(folder: Path, command: list[str]) -> None:
    """The kernels' sources, what stands for a GPU's, and of that what each of them includes, parsed once."""
    shutil.copytree(find_sources() / "cuda", folder)
    shutil.copytree(HERE, folder, dirs_exist_ok=True)
    plain = [word for word in command if not word.startswith("-D")]
    header = folder / INCLUDED_BY_ALL
    subprocess.run([*plain, "-x", "c++-header", str(header), "-o", f"{header}.gch"], check=True)


def operands(form: ScaledFormat, shape: tuple[int, int], dtype: Any) -> tuple[QuantizedWeight, Any]:
    """Two matrices of the shape, one below the other, and the numbers that they hold."""
    parts = [random_matrix(form, shape, seed) for seed in (1, 2)]
    dense = [torch.from_numpy(np.array(dequantize_scaled(part), np.float32).reshape(shape)) for part in parts]
    plain = [PlainCodes.of(part, torch.device("cpu")) for part in parts]
    return QuantizedWeight.of(plain, form, dtype), torch.cat(dense)
