"""Chaining kernels: the next kernel's start hides behind this one's end.

Under programmatic dependent launch a kernel may become resident before its predecessor has finished.
`wait_for_previous` waits until the predecessor's writes are visible, and then lets the successor become resident. In
this order everything before the predecessor is finished when a kernel starts, so before the wait it may read weights
and other data that the predecessor does not write.

    predecessor  ......work......|
    kernel             [start, prefetch weights] wait |......work......|
    successor                                           [start, prefetch] wait ...

A small kernel may admit its successor before its own wait (`EARLY`), if the successor reads only weights before it
waits: these then load during the predecessor's work too.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_previous(CHAINED: tl.constexpr, EARLY: tl.constexpr = False):
    if CHAINED:
        if EARLY:
            gdc_launch_dependents()
        gdc_wait()
        if not EARLY:
            gdc_launch_dependents()


@triton.jit
def admit_next(CHAINED: tl.constexpr):
    """Let the successor become resident before this kernel has waited, which it does at its end. The successor reads
    only weights, and what its grandparent's predecessors wrote, before it waits."""
    if CHAINED:
        gdc_launch_dependents()


@triton.jit
def prefetch_to_l2(pointers):
    """Prefetch the cache lines at `pointers`, without waiting for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )
