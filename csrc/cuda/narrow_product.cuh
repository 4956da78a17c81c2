// Products of four warps together whose first operand is in registers: 64 x N x 16 (wgmma, sm_90a).
#pragma once

#include "warpgroup.cuh"

namespace octavo {

#define OCTAVO_ROW(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define OCTAVO_FOUR(i) OCTAVO_ROW(i), OCTAVO_ROW(i + 1), OCTAVO_ROW(i + 2), OCTAVO_ROW(i + 3)
#define OCTAVO_C16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define OCTAVO_C32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define OCTAVO_C64 \
  OCTAVO_C32 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define OCTAVO_C96 \
  OCTAVO_C64 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define OCTAVO_C128 \
  OCTAVO_C96 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define OCTAVO_C160 \
  OCTAVO_C128 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define OCTAVO_C192 \
  OCTAVO_C160 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define OCTAVO_C224 \
  OCTAVO_C192 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define OCTAVO_C256 \
  OCTAVO_C224 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// c = a b^T, or c += a b^T; a is in registers, the columns of b are the product's depth. kColumns: of c that are computed
template <typename Element, int kColumns, int kMost>
__device__ __forceinline__ void multiply_add_narrow(float (&c)[kMost / 8][4], const uint32_t (&a)[4], uint64_t b,
                                                    bool adds) {
  static_assert(kColumns <= kMost);
#if __CUDA_ARCH_FEAT_SM90_ALL
#define OCTAVO_TYPED(kind, columns, sums, a0, a1, a2, a3, b0, p0, ...)                                             \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " p0 ", 0; wgmma.mma_async.sync.aligned.m64n" #columns              \
               "k16.f32." kind " {" sums "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b0 ", p, 1, 1, 0; }"              \
               : __VA_ARGS__                                                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(adds)));
#define OCTAVO_PRODUCT(columns, ...)                                                                               \
  if constexpr (kColumns == columns && is_half<Element>) OCTAVO_TYPED("f16.f16", columns, __VA_ARGS__)             \
  if constexpr (kColumns == columns && !is_half<Element>) OCTAVO_TYPED("bf16.bf16", columns, __VA_ARGS__)
  OCTAVO_PRODUCT(16, OCTAVO_C16, "%8", "%9", "%10", "%11", "%12", "%13", OCTAVO_ROW(0), OCTAVO_ROW(1))
  OCTAVO_PRODUCT(32, OCTAVO_C32, "%16", "%17", "%18", "%19", "%20", "%21", OCTAVO_FOUR(0))
  OCTAVO_PRODUCT(64, OCTAVO_C64, "%32", "%33", "%34", "%35", "%36", "%37", OCTAVO_FOUR(0), OCTAVO_FOUR(4))
  OCTAVO_PRODUCT(96, OCTAVO_C96, "%48", "%49", "%50", "%51", "%52", "%53", OCTAVO_FOUR(0), OCTAVO_FOUR(4), OCTAVO_FOUR(8))
  OCTAVO_PRODUCT(128, OCTAVO_C128, "%64", "%65", "%66", "%67", "%68", "%69", OCTAVO_FOUR(0), OCTAVO_FOUR(4), OCTAVO_FOUR(8),
                 OCTAVO_FOUR(12))
  OCTAVO_PRODUCT(160, OCTAVO_C160, "%80", "%81", "%82", "%83", "%84", "%85", OCTAVO_FOUR(0), OCTAVO_FOUR(4),
                 OCTAVO_FOUR(8), OCTAVO_FOUR(12), OCTAVO_FOUR(16))
  OCTAVO_PRODUCT(192, OCTAVO_C192, "%96", "%97", "%98", "%99", "%100", "%101", OCTAVO_FOUR(0), OCTAVO_FOUR(4),
                 OCTAVO_FOUR(8), OCTAVO_FOUR(12), OCTAVO_FOUR(16), OCTAVO_FOUR(20))
  OCTAVO_PRODUCT(224, OCTAVO_C224, "%112", "%113", "%114", "%115", "%116", "%117", OCTAVO_FOUR(0), OCTAVO_FOUR(4),
                 OCTAVO_FOUR(8), OCTAVO_FOUR(12), OCTAVO_FOUR(16), OCTAVO_FOUR(20), OCTAVO_FOUR(24))
  OCTAVO_PRODUCT(256, OCTAVO_C256, "%128", "%129", "%130", "%131", "%132", "%133", OCTAVO_FOUR(0), OCTAVO_FOUR(4),
                 OCTAVO_FOUR(8), OCTAVO_FOUR(12), OCTAVO_FOUR(16), OCTAVO_FOUR(20), OCTAVO_FOUR(24), OCTAVO_FOUR(28))
#undef OCTAVO_PRODUCT
#undef OCTAVO_TYPED
#endif
}

#undef OCTAVO_ROW
#undef OCTAVO_FOUR
#undef OCTAVO_C16
#undef OCTAVO_C32
#undef OCTAVO_C64
#undef OCTAVO_C96
#undef OCTAVO_C128
#undef OCTAVO_C160
#undef OCTAVO_C192
#undef OCTAVO_C224
#undef OCTAVO_C256

}  // namespace octavo
