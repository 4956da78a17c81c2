"""Kernels compiled ahead are the ones that are launched, and a kernel that fails to compile affects no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.kernels.cuda.compile_ahead import KernelCompiler
from octavo.kernels.cuda.driver import GPU
from tests.gpu.device import ON_GPU

pytest.importorskip("triton")

#: job b fails, and so would any job that runs while two others do
JOBS = """
import os, sys, time
from pathlib import Path
from octavo.kernels.cuda.compile_process import in_children
folder = Path(sys.argv[1])

def work(line):
    begun = folder / f"{line}.begun"
    begun.touch()
    time.sleep(0.1)
    alone = len(list(folder.glob("*.begun"))) <= 2
    begun.unlink()
    assert alone and line != "b"
    (folder / line).touch()

in_children(work, "abcd", 2)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    sys.exit(0)
sys.exit("a child is left")
"""
KERNELS = [
    *("_rms_norm_kernel", "_elementwise_kernel", "_gated_kernel", "_tile_kernel"),
    *("_scan_kernel", "_draw_kernel"),
]


@pytest.mark.skipif(ON_GPU, reason="the engine's tests ask the same of the GPU's own driver")
def test_what_a_rehearsal_has_compiled_is_found(tmp_path: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    caches = {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "OCTAVO_CACHE_DIR": str(tmp_path / "octavo")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.rehearse"], env=plain | caches, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"{name} found" for name in KERNELS]


def test_each_job_has_a_child_of_its_own_and_none_is_left(tmp_path: Path) -> None:
    """In a process with one thread, like the real one."""
    done = subprocess.run([sys.executable, "-c", JOBS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_a_compiling_process_that_fails_costs_time_alone(tmp_path: Path) -> None:
    compiler = KernelCompiler(GPU("none", (9, 0), 1, 1), tmp_path / "compiled" / "mark")
    compiler.close()
    with compiler.rehearsal():
        pass
    compiler.remember()
    assert (tmp_path / "compiled" / "mark").exists()


def test_there_is_none_without_a_gpu() -> None:
    assert KernelCompiler.for_first_start(None, "settings") is None
