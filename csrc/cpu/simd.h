// The thin layer between the matmul kernels and the processor: one vector width, a dozen operations.
//
// A build has one instruction set, the compiler's target:
//
//   simd_avx512.h    16 lanes   AVX-512 with VNNI
//   simd_avx2.h       8 lanes   AVX2, FMA, F16C (x86-64-v3); also AVX-512 processors without VNNI
//   simd_portable.h   4 lanes   anything else, in GCC's and Clang's vector language
//
// Each defines, in octavo::simd:
//
//   kLanes               32-bit lanes of a vector
//   kQuantizedTileTokens, kDenseTileTokens   tokens whose sums fit in the registers
//   F32, Bytes           vectors of kLanes floats; of 4 * kLanes bytes
//   Half                 the type that fp16 numbers are packed as: uint16_t if an instruction converts it
//   kQ8Offset            added to signed bytes when they are packed, for products that need them unsigned
//   load_float8          floats of 8 bits (e4m3), of which none is a NaN, divided by kFloat8Factor
//   load, store, zero, broadcast, fma, and conversions from narrow numbers to F32
//   Dot<bits>            sums of products of bytes; four adjacent columns meet in a lane
//
// fma is fused if the target has the instruction. The kernels never leave contraction to the compiler, because two
// instances of one kernel must round the same way.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#include "simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif

namespace octavo::simd {

// Calls f(0), f(1), ... f(N - 1) with compile-time constants, so that arrays indexed by them stay in registers.
template <typename F, int... I>
[[gnu::always_inline]] inline void unroll(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}

template <int N, typename F>
[[gnu::always_inline]] inline void unroll(F&& f) {
  unroll(std::forward<F>(f), std::make_integer_sequence<int, N>{});
}

}  // namespace octavo::simd
