// Products of 16-bit matrices with eight columns by four warps together (wgmma, sm_90a).
#pragma once

#include "ptx.cuh"

namespace octavo {

// c = a b^T, or c += a b^T, for 64 rows of a, 8 of b and a depth of 16. Both have rows of 128 bytes in shared memory,
// see `matrix`. c: columns 2 (lane % 4) and that + 1, of row lane / 4, then that + 8, of the warp's 16 rows.
template <typename T>
__device__ __forceinline__ void multiply_add_eight(float (&c)[1][4], uint64_t a, uint64_t b, bool adds) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (!is_half<T>) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0; wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3}, %4, %5, p, 1, 1, 0, 0; }"
                 : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3])
                 : "l"(a), "l"(b), "r"(int(adds)));
  } else {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0; wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 "
                 "{%0, %1, %2, %3}, %4, %5, p, 1, 1, 0, 0; }"
                 : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3])
                 : "l"(a), "l"(b), "r"(int(adds)));
  }
#endif
}

}  // namespace octavo
