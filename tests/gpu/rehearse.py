"""Compile kernels ahead on a machine without a GPU: `python -m tests.gpu.rehearse`, with separate cache folders.

Then launches them, and prints each kernel's name and whether it was found or compiled. Not a test itself, since a
process that interprets kernels cannot compile any.
"""

from __future__ import annotations

import threading
from contextlib import suppress

import torch
import triton
from triton.runtime import driver

from octavo.kernels.cuda.compile_ahead import KernelCompiler, _kernel_caches
from octavo.kernels.cuda.compile_process import OfflineDriver
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.triton.elementwise import elementwise, norm
from octavo.kernels.triton.linear.tile_linear import TileLinear
from octavo.kernels.triton.sampling.draw import sample
from octavo.kernels.triton.sampling.edited_rows import SamplingWorkspace
from octavo.kernels.triton.sampling.entries import DeviceSamplingBatch

launched: list[torch.Tensor] = []


class WithoutGPU(OfflineDriver):
    def get_current_stream(self, device: int) -> int:
        return 0


def launch() -> None:
    x, y = torch.randn(2, 16, 1024, dtype=torch.bfloat16)
    before = x.clone()
    norm.rms_norm(x, torch.ones(1024), 1e-6, y, chained=True)
    elementwise.elementwise("add", x, y, x, chained=True)
    elementwise.gated_activation(x, "silu", y[:, :512], chained=True)
    linear = TileLinear(torch.zeros(6144, 1024, dtype=torch.bfloat16), "silu")
    tile = linear.tile_for(16)
    assert tile is not None, "the product that this was written for has a tile"
    linear.run(x, torch.empty(16, 3072, dtype=torch.bfloat16), tile=tile, chained=True)
    draw()
    assert torch.equal(x, before), "nothing runs"


def draw() -> None:
    """Draw without filters, which take many seconds to compile."""
    batch = DeviceSamplingBatch.zeros(8, torch.device("cpu"))
    workspace = SamplingWorkspace.allocate(8, 1000, torch.device("cpu"), edits=False)
    logits, tokens = torch.zeros(8, 1000), torch.zeros(8, dtype=torch.int32)
    sample(logits, batch, tokens, workspace, has_edits=False, has_filters=False, chained=True)


def launch_for_real(dtype: torch.dtype) -> None:
    """Launch outside of a rehearsal, as far as possible without a GPU."""
    x, y = torch.ones(2, 16, 1024, dtype=dtype)
    with suppress(Exception):
        elementwise.elementwise("add", x, y, x, chained=True)
    launched.append(x)


def launch_one() -> None:
    """Launch a kernel that no other launch here needs."""
    x, y = torch.ones(2, 16, 1024)
    norm.rms_norm(x, torch.ones(1024), 1e-6, y, chained=True)


def main() -> None:
    gpu = GPU("none", (9, 0), 1 << 34, 132)
    driver.set_active(WithoutGPU(90))
    compiler = KernelCompiler.for_first_start(gpu, "settings")
    assert compiler is not None, "nothing is compiled yet"
    with suppress(Exception):  # it is compiled but cannot run
        launch_one()
    elsewhere = [threading.Thread(target=launch_for_real, args=(dtype,)) for dtype in (torch.float32, torch.bfloat16)]
    with compiler.rehearsal():
        launch_one()
        launch()
        for thread in elsewhere:
            thread.start()
        launch()
        assert not launched, "others' launches wait, of a kernel that is known and of one that is not"
    for thread in elsewhere:
        thread.join()
    assert len(launched) == 2
    (caches,) = norm._rms_norm_kernel.device_caches.values()
    assert len(caches[0]) == 1, "what was compiled before is there again, and nothing else"
    compiler.remember()
    compiler.close()
    assert KernelCompiler.for_first_start(gpu, "settings") is None, "all is compiled"
    other = KernelCompiler.for_first_start(gpu, "other settings")
    assert other is not None
    other._process.kill()
    other._process.wait()
    with other.rehearsal():
        launch()
    other.close()

    def told(*, src: object, cache_hit: bool, **about: object) -> None:
        print(src.name, "found" if cache_hit else "compiled", flush=True)  # type: ignore[attr-defined]

    for caches in _kernel_caches():
        caches.clear()
    triton.knobs.compilation.listener = told
    run = triton.runtime.JITFunction.run
    triton.runtime.JITFunction.run = lambda *args, warmup, **kwargs: run(*args, warmup=True, **kwargs)
    launch()


if __name__ == "__main__":
    main()
