// Numbers of int4 codes, for wide_int4.cu: two inputs at a time, in bfloat16.
//
// A code is the lowest 4 bits of a half, or the 4 above them. A bfloat16 of these bits alone is the code times 2^-133, or
// times 2^-129, since numbers below 2^-125 are evenly spaced. So one fma makes a number of it:
//
//   short scales   bfloat16 numbers below 2^17, with zero points of 8:  code x scale - 8 x scale, rounded once. The factor
//                  2^133 x scale would be too large, so numbers are 2^-24 of what they should be, and sums are raised
//   others         (code - zero) / 64, which is exact, times 64 x scale in two parts, together as exact as float32
#pragma once

#include "ptx.cuh"

#ifndef HAS_ZEROS
#define HAS_ZEROS 0
#endif
#ifndef HAS_SHORT_SCALES
#define HAS_SHORT_SCALES 0
#endif

namespace octavo {
namespace {

constexpr float kRaised = HAS_SHORT_SCALES ? 0x1p24f : 1;  // what sums are multiplied by

// Pairs of what a code is multiplied by, in the lower bits and in the higher, and of what is added
struct Int4Scale {
  uint32_t low, high, minus;
#if !HAS_SHORT_SCALES
  uint32_t factor, rest;
#endif

  static __device__ __forceinline__ Int4Scale of(float scale, float zero) {
    Int4Scale s;
#if HAS_SHORT_SCALES
    s.low = twice(scale * 0x1p109f);
    s.high = twice(scale * 0x1p105f);
    s.minus = twice(scale * -0x1p-21f);
#else
    s.low = 0x7f007f00;  // 2^127
    s.high = 0x7d007d00;
    s.minus = twice(zero * -0x1p-6f);
    s.factor = twice(scale * 64);
    s.rest = twice(scale * 64 - low_half<Bf16>(s.factor));
#endif
    return s;
  }

  // Inputs 2 i and 2 i + 1 of a word, as pack_int4 deals them
  __device__ __forceinline__ uint32_t pair(uint32_t word, int i) const {
    const uint32_t code = word >> (i / 2 * 8) & (i % 2 ? 0x00f000f0 : 0x000f000f);
    const uint32_t number = fma_pair<Bf16>(code, i % 2 ? high : low, minus);
#if HAS_SHORT_SCALES
    return number;
#else
    return fma_pair<Bf16>(number, factor, fma_pair<Bf16>(number, rest, 0x80008000));
#endif
  }

 private:
  static __device__ __forceinline__ uint32_t twice(float x) { return pack<Bf16>(x, x); }
};

}  // namespace
}  // namespace octavo
