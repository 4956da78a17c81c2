// Products of four warps together that are 256 columns wide: 64 x 256 x 32 bytes of depth (wgmma, sm_90a).
#pragma once

#include "warpgroup.cuh"

namespace octavo {

// 8 bits, e4m3
struct Fp8 {
  uint8_t bits;
};

#define OCTAVO_ROW(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define OCTAVO_SUMS \
  OCTAVO_ROW(0), OCTAVO_ROW(1), OCTAVO_ROW(2), OCTAVO_ROW(3), OCTAVO_ROW(4), OCTAVO_ROW(5), OCTAVO_ROW(6), OCTAVO_ROW(7), \
  OCTAVO_ROW(8), OCTAVO_ROW(9), OCTAVO_ROW(10), OCTAVO_ROW(11), OCTAVO_ROW(12), OCTAVO_ROW(13), OCTAVO_ROW(14), OCTAVO_ROW(15), \
  OCTAVO_ROW(16), OCTAVO_ROW(17), OCTAVO_ROW(18), OCTAVO_ROW(19), OCTAVO_ROW(20), OCTAVO_ROW(21), OCTAVO_ROW(22), OCTAVO_ROW(23), \
  OCTAVO_ROW(24), OCTAVO_ROW(25), OCTAVO_ROW(26), OCTAVO_ROW(27), OCTAVO_ROW(28), OCTAVO_ROW(29), OCTAVO_ROW(30), OCTAVO_ROW(31)
#define OCTAVO_C \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
  "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, " \
  "%60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, " \
  "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, " \
  "%120, %121, %122, %123, %124, %125, %126, %127}"

#define OCTAVO_PRODUCT(Type, kind, transposed)                                                                       \
  template <>                                                                                                        \
  __device__ __forceinline__ void multiply_add_256<Type>(float (&c)[32][4], uint64_t a, uint64_t b, bool adds) {     \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %130, 0; wgmma.mma_async.sync.aligned." kind " " OCTAVO_C           \
                 ", %128, %129, p, 1, 1" transposed "; }"                                                            \
                 : OCTAVO_SUMS                                                                                       \
                 : "l"(a), "l"(b), "r"(int(adds)));                                                                  \
  }

// c = a b^T, or c += a b^T; the columns of a and b are the product's depth.
template <typename T>
__device__ __forceinline__ void multiply_add_256(float (&c)[32][4], uint64_t a, uint64_t b, bool adds);

#if __CUDA_ARCH_FEAT_SM90_ALL
OCTAVO_PRODUCT(Bf16, "m64n256k16.f32.bf16.bf16", ", 0, 0")
OCTAVO_PRODUCT(Fp16, "m64n256k16.f32.f16.f16", ", 0, 0")
OCTAVO_PRODUCT(Fp8, "m64n256k32.f32.e4m3.e4m3", "")
#endif

#undef OCTAVO_ROW
#undef OCTAVO_SUMS
#undef OCTAVO_C
#undef OCTAVO_PRODUCT

}  // namespace octavo
