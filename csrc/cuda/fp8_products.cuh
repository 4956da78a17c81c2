// Products of e4m3 with e4m3 by four warps together (wgmma, sm_90a), and conversions to and from e4m3.
#pragma once

#include "ptx.cuh"

namespace octavo {

// Two numbers of e4m3, the first in the low byte; what is too large becomes the largest
__device__ __forceinline__ uint16_t to_e4m3(float low, float high) {
  uint16_t pair = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
#endif
  return pair;
}

__device__ __forceinline__ float2 from_e4m3(uint16_t pair) {
  uint32_t halves = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
#endif
  return {to_float(Fp16{uint16_t(halves)}), to_float(Fp16{uint16_t(halves >> 16)})};
}

// c = a b^T, or c += a b^T, for 64 rows of a, 8 kGroups of b and a depth of 32. Both have rows of 128 bytes in shared
// memory, see `matrix`. c[i]: columns 2 (lane % 4) and that + 1 of group i, of row lane / 4, then that + 8, of the
// warp's 16 rows.
template <int kGroups>
__device__ __forceinline__ void multiply_add_fp8(float (&c)[kGroups][4], uint64_t a, uint64_t b, bool adds);

#define OCTAVO_GROUP(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define OCTAVO_GROUPS_2 OCTAVO_GROUP(0), OCTAVO_GROUP(1)
#define OCTAVO_GROUPS_4 OCTAVO_GROUPS_2, OCTAVO_GROUP(2), OCTAVO_GROUP(3)
#define OCTAVO_GROUPS_8 OCTAVO_GROUPS_4, OCTAVO_GROUP(4), OCTAVO_GROUP(5), OCTAVO_GROUP(6), OCTAVO_GROUP(7)
#define OCTAVO_C_4 "%0, %1, %2, %3"
#define OCTAVO_C_8 OCTAVO_C_4 ", %4, %5, %6, %7"
#define OCTAVO_C_16 OCTAVO_C_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define OCTAVO_C_32                                                                                                  \
  OCTAVO_C_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"

#if __CUDA_ARCH_FEAT_SM90_ALL
#define OCTAVO_PRODUCT(groups, columns, C, a_at, b_at, adds_at, numbers)                                             \
  template <>                                                                                                        \
  __device__ __forceinline__ void multiply_add_fp8<groups>(float (&c)[groups][4], uint64_t a, uint64_t b,            \
                                                           bool adds) {                                              \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #adds_at ", 0; wgmma.mma_async.sync.aligned.m64n" #columns       \
                 "k32.f32.e4m3.e4m3 {" C "}, %" #a_at ", %" #b_at ", p, 1, 1; }"                                     \
                 : numbers                                                                                           \
                 : "l"(a), "l"(b), "r"(int(adds)));                                                                  \
  }
#define OCTAVO_NUMBERS(...) __VA_ARGS__
OCTAVO_PRODUCT(1, 8, OCTAVO_C_4, 4, 5, 6, OCTAVO_NUMBERS(OCTAVO_GROUP(0)))
OCTAVO_PRODUCT(2, 16, OCTAVO_C_8, 8, 9, 10, OCTAVO_NUMBERS(OCTAVO_GROUPS_2))
OCTAVO_PRODUCT(4, 32, OCTAVO_C_16, 16, 17, 18, OCTAVO_NUMBERS(OCTAVO_GROUPS_4))
OCTAVO_PRODUCT(8, 64, OCTAVO_C_32, 32, 33, 34, OCTAVO_NUMBERS(OCTAVO_GROUPS_8))
#undef OCTAVO_NUMBERS
#undef OCTAVO_PRODUCT
#endif

#undef OCTAVO_GROUP
#undef OCTAVO_GROUPS_2
#undef OCTAVO_GROUPS_4
#undef OCTAVO_GROUPS_8
#undef OCTAVO_C_4
#undef OCTAVO_C_8
#undef OCTAVO_C_16
#undef OCTAVO_C_32

}  // namespace octavo
