"""Chaining kernels: the next kernel's start hides behind this one's end.

Under programmatic dependent launch a kernel may be resident before the one it depends on has finished.
`wait_for_previous` is where it stops until that one's writes are visible. It then allows its own successor to
become resident. In this order a kernel that has started knows that everything before its predecessor is
finished, so before the wait it may read weights and whatever the predecessor does not write.

    predecessor  ......work......|
    kernel             [start, prefetch weights] wait |......work......|
    successor                                           [start, prefetch] wait ...

A small kernel may allow its successor before it waits itself (`EARLY`), if that one reads nothing but weights
before its own wait: they are then on their way during the predecessor's work, too.
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
def prefetch_to_l2(pointers):
    """Ask for the cache lines at `pointers`, without waiting for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )
