// Numbers of codes of 4 or 8 bits, for wide_codes.cu: two inputs at a time, in the type of the rows.
//
// An integer is the lowest bits of a half, or the 4 above them. Numbers so small are evenly spaced: of a bfloat16 these bits alone
// are the code times 2^-133, or times 2^-129; of a float16 times 2^-24, or 2^-20. So one fma makes a number of them:
//
//   a scale for each output   (code - zero) x kUnit, which is exact; sums are scaled
//   of groups, short,         bfloat16 numbers below 2^17:  code x scale - zero x scale, rounded once. The factor 2^133 x scale
//   no zeros, bfloat16        would be too large, so numbers are 2^-24 of what they should be, and sums are raised
//   of groups, short          numbers of the rows' type: (code - zero) x kUnit, then times scale / kUnit
//   others                    the same, times scale / kUnit in two parts, together as exact as float32
//
// A number of e4m3, shifted so that its exponent is where that of a bfloat16 is, is 2^-120 of itself; so is what is too small for
// a full significand. It is multiplied by its block's scale, in one part or two, and sums are raised as above.
#pragma once

#include "quantized_weights.cuh"

#ifndef ELEMENT
#define ELEMENT Bf16
#endif
#ifndef FORMAT  // kInt4, kInt8 or kFp8
#define FORMAT kInt4
#endif
#ifndef SCALES
#define SCALES kOfGroups
#endif
#ifndef HAS_ZEROS
#define HAS_ZEROS 0
#endif
#ifndef HAS_SHORT_SCALES
#define HAS_SHORT_SCALES 0
#endif

namespace octavo {
namespace {

enum ScaleKind { kOfOutputs, kOfGroups, kOfBlocks };

constexpr bool kIsHalf = is_half<ELEMENT>, kAreBytes = FORMAT != kInt4, kIsFp8 = FORMAT == kFp8;
static_assert(kIsFp8 ? SCALES == kOfBlocks && !kIsHalf : SCALES != kOfBlocks, "what blocks of scales are of");
constexpr float kZero = kAreBytes ? 128 : 8;  // of integers, where it is not given
constexpr float kUnit = kIsHalf ? 0x1p-9f : 0x1p-6f;
// Whether one fma makes the number of an integer
constexpr bool kIsOneStep = SCALES == kOfOutputs || (HAS_SHORT_SCALES && !HAS_ZEROS && !kIsHalf);
// What sums are multiplied by
constexpr float kRaised = SCALES == kOfOutputs ? 1 / kUnit : kIsFp8 || kIsOneStep ? 0x1p24f : 1;

// Pairs of what a code is multiplied by, in the lower bits and in the higher, and of what is added
struct CodeScale {
  uint32_t low, high, minus;
  uint32_t factor, rest;  // of the scale, where that takes a step of its own

  static __device__ __forceinline__ CodeScale of(float scale, float zero) {
    CodeScale s;
    if constexpr (kIsFp8) {
      s.set_factor(scale * 0x1p96f);
    } else if constexpr (SCALES == kOfGroups && kIsOneStep) {
      s.low = twice(scale * 0x1p109f);
      s.high = twice(scale * 0x1p105f);
      s.minus = twice(scale * (kZero * -0x1p-24f));
    } else {
      s.low = kIsHalf ? 0x78007800 : 0x7f007f00;   // 2^15, 2^127
      s.high = kIsHalf ? 0x68006800 : 0x7d007d00;
      s.minus = twice(zero * -kUnit);
      if constexpr (SCALES == kOfGroups) s.set_factor(scale * (1 / kUnit));
    }
    return s;
  }

  // bits: of integers, alone in each half; is_high: 4 bits up. Of e4m3: in the upper byte of each half
  __device__ __forceinline__ uint32_t numbers(uint32_t bits, bool is_high) const {
    if constexpr (kIsFp8) return scaled((bits & 0x80008000) | (bits >> 4 & 0x07f007f0));
    const uint32_t numbers = fma_pair<ELEMENT>(bits, is_high ? high : low, minus);
    return kIsOneStep ? numbers : scaled(numbers);
  }

 private:
  __device__ __forceinline__ void set_factor(float scale) {
    factor = twice(scale);
    rest = twice(scale - low_half<ELEMENT>(factor));
  }

  __device__ __forceinline__ uint32_t scaled(uint32_t numbers) const {
    const uint32_t more = HAS_SHORT_SCALES ? 0x80008000 : fma_pair<ELEMENT>(numbers, rest, 0x80008000);
    return fma_pair<ELEMENT>(numbers, factor, more);
  }

  static __device__ __forceinline__ uint32_t twice(float x) { return pack<ELEMENT>(x, x); }
};

}  // namespace
}  // namespace octavo
