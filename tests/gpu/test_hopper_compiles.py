"""Without a GPU: the Gluon kernels, and those of latents, compile for a Hopper with the installed Triton, and fit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.gpu.device import ON_GPU

if ON_GPU:
    pytest.skip("the other tests run them here", allow_module_level=True)

PER_MULTIPROCESSOR = 233_472  # bytes of shared memory; a program takes 1024 more than it asks for
PROGRAMS = {"prefill": 1, "decode": 2, "tile": 1, "latent": 1, "fixed": 1}


def test_every_kernel_compiles_and_fits() -> None:
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-m", "tests.gpu.compile_hopper"], env=plain, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    kernels = dict(line.rsplit(" ", 1) for line in found.stdout.splitlines())
    assert len(kernels) == 16
    for name, num_bytes in kernels.items():
        assert int(num_bytes) + 1024 <= PER_MULTIPROCESSOR // PROGRAMS[name.split("-")[0]], name
